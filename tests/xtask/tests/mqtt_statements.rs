//! Every statement of MQTT 3.1.1 that binds a server has a test of the gateway named by it: a rule about the source.
//!
//! A test's name begins with what it shows: `mqtt_3_1_2_4_and_6_…` is [MQTT-3.1.2-4] and [MQTT-3.1.2-6], `…_6_to_8_…` a range,
//! `…_and_3_10_3_1_…` a statement of another section.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Section and number of every statement that a server checks or obeys, whether as written or as IoT Hub has it. Left out: duties of clients,
/// and [MQTT-7.0.0-1], which is for servers that dial other MQTT servers.
const STATEMENTS: &[(&str, &[u32])] = &[
    ("1_5_3", &[1, 2, 3]),
    ("2_2_2", &[1, 2]),
    ("2_3_1", &[1, 4, 5, 6, 7]),
    ("3_1_0", &[1, 2]),
    ("3_1_2", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24]),
    ("3_1_3", &[1, 2, 3, 4, 5, 6, 8, 9, 10, 11]),
    ("3_1_4", &[1, 2, 3, 4, 5]),
    ("3_2_0", &[1]),
    ("3_2_2", &[1, 2, 3, 4, 5, 6]),
    ("3_3_1", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ("3_3_2", &[1, 2, 3]),
    ("3_3_4", &[1]),
    ("3_3_5", &[1, 2]),
    ("3_6_1", &[1]),
    ("3_8_1", &[1]),
    ("3_8_3", &[1, 2, 3, 4]),
    ("3_8_4", &[1, 2, 3, 4, 5, 6]),
    ("3_9_3", &[1, 2]),
    ("3_10_1", &[1]),
    ("3_10_3", &[1, 2]),
    ("3_10_4", &[1, 2, 3, 4, 5, 6]),
    ("3_12_4", &[1]),
    ("3_14_1", &[1]),
    ("3_14_4", &[3]),
    ("4_1_0", &[1, 2]),
    ("4_3_1", &[1]),
    ("4_3_2", &[1, 2]),
    ("4_3_3", &[1, 2]),
    ("4_4_0", &[1]),
    ("4_5_0", &[1]),
    ("4_6_0", &[5, 6]),
    ("4_7_1", &[1, 2, 3]),
    ("4_7_2", &[1]),
    ("4_7_3", &[1, 2, 3, 4]),
    ("4_8_0", &[1, 2]),
    ("6_0_0", &[1, 2, 4]),
    ("7_0_0", &[2]),
    ("7_1_1", &[1]),
];

#[test]
fn every_statement_that_binds_a_server_has_a_test_named_by_it() {
    let shown = shown();
    let all = STATEMENTS.iter().flat_map(|(section, numbers)| numbers.iter().map(move |n| format!("{section}_{n}")));
    let missing: Vec<_> = all.filter(|statement| !shown.contains(statement)).collect();
    assert!(missing.is_empty(), "no test is named by {missing:?}");
}

#[test]
fn names_are_read_as_they_are_meant() {
    let check = |name, expected: &[&str]| assert_eq!(statements(name), expected, "{name}");
    check("mqtt_3_1_2_2_another_level", &["3_1_2_2"]);
    check("mqtt_2_2_2_1_and_2_flags", &["2_2_2_1", "2_2_2_2"]);
    check("mqtt_3_8_3_1_and_3_10_3_1_filters", &["3_8_3_1", "3_10_3_1"]);
    check("mqtt_3_3_1_6_to_8_and_10_retained", &["3_3_1_6", "3_3_1_7", "3_3_1_8", "3_3_1_10"]);
    check("mqtt_3_9_3_2_suback_codes_are_0_1_2_and_0x80", &["3_9_3_2"]);
    check("plain_mqtt_on_a_tls_port", &[]);
}

/// The statements that test names of the gateway's crates show.
fn shown() -> BTreeSet<String> {
    let gateway = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../gateway");
    let mut shown = BTreeSet::new();
    for file in sources(&gateway) {
        let text = fs::read_to_string(&file).expect("a source file is text");
        let tests = text.split("#[test]").skip(1).filter_map(|behind| behind.trim_start().strip_prefix("fn "));
        for name in tests.filter_map(|behind| behind.split('(').next()) {
            shown.extend(statements(name));
        }
    }
    shown
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .expect("the gateway's sources are beside xtask's")
        .map(|entry| entry.expect("it was listed").path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// What a test's name says that it shows.
fn statements(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Some(rest) = name.strip_prefix("mqtt_") else { return found };
    let (mut section, mut last, mut is_range) = (String::new(), 0, false);
    let mut words = rest.split('_').peekable();
    loop {
        let mut numbers: Vec<u32> = Vec::new();
        while let Some(number) = words.peek().and_then(|word| word.parse().ok()) {
            numbers.push(number);
            words.next();
        }
        match numbers[..] {
            [a, b, c, n, ..] => (section, last) = (format!("{a}_{b}_{c}"), n),
            [n] if is_range => {
                found.extend((last + 1..n).map(|n| format!("{section}_{n}")));
                last = n;
            }
            [n] => last = n,
            _ => return found,
        }
        found.push(format!("{section}_{last}"));
        match words.next() {
            Some("and") => is_range = false,
            Some("to") => is_range = true,
            _ => return found,
        }
    }
}
