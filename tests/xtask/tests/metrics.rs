//! Alerts and dashboards ask for metrics that there are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use xtask::process::workspace_root;

const CHART: &str = "charts/protocol-gateway-operator";

#[test]
fn alerts_and_dashboards_ask_for_metrics_that_there_are() {
    let known = known();
    for name in ["gateway_connections", "gateway_settle_seconds", "operator_leader"] {
        assert!(known.contains(name), "{name} is not found in the sources: {known:?}");
    }
    let mut asked = BTreeSet::new();
    for path in dashboards().into_iter().chain([workspace_root().join(CHART).join("alerts/rules.yaml")]) {
        for family in asked_for(&path) {
            assert!(known.contains(&family), "{} asks for {family}, which there is not", path.display());
            asked.insert(family);
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
}

#[test]
fn every_counter_of_something_lost_or_failed_is_on_a_dashboard() {
    let ends = ["dropped", "lost", "overflows", "errors", "failures", "panics", "refusals"];
    let shown: BTreeSet<String> = dashboards().iter().flat_map(|path| asked_for(path)).collect();
    let counters = known().into_iter().filter(|name| {
        let name = name.strip_suffix("_total");
        name.is_some_and(|name| ends.iter().any(|end| name.ends_with(&format!("_{end}"))))
    });
    let counters: BTreeSet<String> = counters.collect();
    for name in ["gateway_upstream_dropped_total", "operator_connections_lost_total", "operator_watch_failures_total"] {
        assert!(counters.contains(name), "{name} is not found in the sources: {counters:?}");
    }
    let hidden: Vec<_> = counters.difference(&shown).collect();
    assert!(hidden.is_empty(), "on no dashboard: {hidden:?}");
}

/// Families that a dashboard or a file of alerts asks for.
fn asked_for(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("a file of the chart");
    // an alert's text names Secrets and programs, too
    let expressions = text.lines().filter(|line| !line.contains("description") && !line.contains("summary"));
    let family = |name: String| {
        let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        family.unwrap_or(&name).to_owned()
    };
    expressions.flat_map(names).map(family).collect()
}

/// Names in quotes in the sources of those who serve metrics. The operator names gateways' for autoscalers, too.
fn known() -> BTreeSet<String> {
    let mut known = quoted(&workspace_root().join("gateway/server/src/metrics/export.rs"));
    let operators = sources(&workspace_root().join("operator/src"));
    known.extend(operators.iter().flat_map(|path| quoted(path)).filter(|name| name.starts_with("operator_")));
    known
}

fn quoted(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("a source");
    text.split('"').filter(|text| names(text).next().is_some_and(|name| name == *text)).map(str::to_owned).collect()
}

/// Every file of Rust in a directory and below.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = directories.iter().flat_map(|directory| sources(directory));
    files.into_iter().chain(below).filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

fn dashboards() -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace_root().join(CHART).join("dashboards")).expect("dashboards");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// Words that look like a metric of ours.
fn names(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|each: char| !each.is_ascii_alphanumeric() && each != '_');
    words.filter(|word| word.starts_with("gateway_") || word.starts_with("operator_")).map(str::to_owned)
}
