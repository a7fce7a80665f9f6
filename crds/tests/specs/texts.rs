//! Texts that have a grammar: what the definition takes, a gateway takes, and the other way round but for what is named here.

use std::iter;

use crds::ProtocolGatewaySpec;
use gateway_core::config::Admin;
use serde_json::{Value, json};

use crate::support::{self, ApiServer};

/// What the definition and a gateway say to one text.
struct Judges {
    schema: Value,
    spec: fn(&str) -> Value,
}

impl Judges {
    /// Of the field whose schema is at `pointer` below the spec's; `spec` is one that is right but for it.
    fn of(pointer: &str, spec: fn(&str) -> Value) -> Self {
        let server = ApiServer::new();
        let schema = server.schema()["properties"]["spec"].pointer(pointer).expect("the field is there").clone();
        Self { schema, spec }
    }

    fn definition_takes(&self, text: &str) -> bool {
        support::judge(&self.schema, &json!(text)).is_empty()
    }

    fn gateway_takes(&self, text: &str) -> bool {
        let spec: ProtocolGatewaySpec = serde_json::from_value((self.spec)(text)).expect("it is of the form");
        spec.gateway_config(Some("tls".to_owned()), Admin::default()).check().is_ok()
    }

    /// How many of the texts are taken; `more` are those that only a gateway takes.
    fn compare(&self, texts: impl Iterator<Item = String>, more: fn(&str) -> bool) -> (usize, usize) {
        let (mut taken, mut all) = (0, 0);
        for text in texts {
            let (definition, gateway) = (self.definition_takes(&text), self.gateway_takes(&text));
            assert_eq!(definition, gateway && !more(&text), "{text:?}: a gateway takes it: {gateway}");
            taken += usize::from(definition);
            all += 1;
        }
        (taken, all)
    }
}

/// Every text of up to `count` of these words.
fn texts(words: &'static [&'static str], count: usize) -> impl Iterator<Item = String> {
    let longer = move |texts: &Vec<String>| {
        let texts = texts.iter().flat_map(|text| words.iter().map(move |word| format!("{text}{word}")));
        Some(texts.collect())
    };
    iter::successors(longer(&vec![String::new()]), longer).take(count).flatten()
}

#[test]
fn the_same_topic_templates_are_taken() {
    let judges = Judges::of(
        "/properties/topics/properties/inbound/items",
        |text| json!({"topics": {"inbound": [text]}, "upstream": {"iotHub": {"hostName": "contoso.azure-devices.net"}}}),
    );
    let characters = &["{", "}", "*", "=", "/", "a", "%41", "%", "+", "\0"];
    // a brace in a default is to be encoded
    let brace = |text: &str| {
        text.split('/')
            .any(|segment| segment.split_once('=').is_some_and(|(_, default)| default.matches(['{', '}']).count() > 1))
    };
    let (taken, all) = judges.compare(texts(characters, 3), brace);
    assert!(taken > 30 && all > 1000, "{taken} of {all}");
    let segments = &[
        "a/",
        "/",
        "{a}/",
        "{a}",
        "{b=1}/",
        "{b}",
        "{*a}",
        "{deviceId}/",
        "{moduleId}/",
        "{deviceId=a}",
        "{properties}",
        "{*properties}",
        "{*deviceId}/",
        "{a=%4}",
        "{a=%41}/",
        "é/",
    ];
    let (taken, all) = judges.compare(texts(segments, 3), brace);
    assert!(taken > 100 && all > 4000, "{taken} of {all}");
}

#[test]
fn the_same_urls_of_brokers_are_taken() {
    let judges = Judges::of("/properties/upstream/properties/amqp/properties/url", |text| {
        json!({
            "authentication": {"sas": {"verify": "Local", "deviceKeys": {"secretName": "keys"}}},
            "upstream": {"amqp": {"url": text, "telemetryAddress": "t/{deviceId}"}},
        })
    });
    let (label, long) = ("a".repeat(63), "a".repeat(64));
    let hosts = [
        "a",
        "a-",
        "-a",
        "a.b",
        "a..b",
        ".a",
        "a.",
        "A-1.b",
        "a_b",
        "192.0.2.1",
        "[::1]",
        "[::]",
        "[::::]",
        "[1:2:3:4:5:6:7:8]",
        "[1:2:3:4:5:6:7:8:9]",
        "[fe80::1%eth0]",
        "[12345::]",
        "[192.0.2.1]",
        "[a]",
        "[]",
        "[::1",
        "::1]",
        "::1",
        "",
        "u:secret@a",
        "a b",
        &label,
        &long,
    ];
    let ports = [
        "", ":", ":0", ":1", ":05671", ":5671", ":9999", ":60000", ":65535", ":65536", ":66000", ":70000", ":100000",
        ":x", ":-1",
    ];
    let mut urls = Vec::new();
    for scheme in ["amqp", "amqps", "https"] {
        for host in hosts {
            for port in ports {
                urls.extend(["", "/", "//", "?q"].map(|end| format!("{scheme}://{host}{port}{end}")));
            }
        }
    }
    // a port is written out, without zeros before it
    let odd_port = |text: &str| {
        let rest = text.trim_end_matches('/');
        rest.ends_with(':') || rest.rsplit_once(':').is_some_and(|(_, port)| port.len() > 1 && port.starts_with('0'))
    };
    let (taken, all) = judges.compare(urls.into_iter(), odd_port);
    assert!(taken > 100 && all > 5000, "{taken} of {all}");
}
