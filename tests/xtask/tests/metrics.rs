//! Alerts and dashboards ask for metrics that there are.

use std::{collections::BTreeSet, fs, path::PathBuf};

use xtask::process::workspace_root;

const CHART: &str = "charts/protocol-gateway-operator";

#[test]
fn alerts_and_dashboards_ask_for_metrics_that_there_are() {
    let known = known();
    for name in ["gateway_connections", "gateway_settle_seconds", "operator_leader"] {
        assert!(known.contains(name), "{name} is not found in the sources: {known:?}");
    }
    let mut asked = BTreeSet::new();
    for path in files() {
        let text = fs::read_to_string(&path).expect("a file of the chart");
        // an alert's text names Secrets and programs, too
        let expressions = text.lines().filter(|line| !line.contains("description") && !line.contains("summary"));
        for name in expressions.flat_map(names) {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            assert!(known.contains(family), "{} asks for {name}, which there is not", path.display());
            asked.insert(family.to_owned());
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
}

/// Names in quotes in the sources of those who serve metrics.
fn known() -> BTreeSet<String> {
    let sources = ["gateway/server/src/metrics/export.rs", "operator/src/metrics.rs"];
    let texts = sources.map(|path| fs::read_to_string(workspace_root().join(path)).expect("a source"));
    let quoted = texts.iter().flat_map(|text| text.split('"').skip(1).step_by(2));
    quoted.filter(|text| names(text).next().is_some_and(|name| name == *text)).map(str::to_owned).collect()
}

fn files() -> Vec<PathBuf> {
    let chart = workspace_root().join(CHART);
    let dashboards = fs::read_dir(chart.join("dashboards")).expect("dashboards");
    let dashboards = dashboards.map(|entry| entry.expect("an entry").path());
    dashboards.chain([chart.join("alerts/rules.yaml")]).collect()
}

/// Words that look like a metric of ours.
fn names(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|each: char| !each.is_ascii_alphanumeric() && each != '_');
    words.filter(|word| word.starts_with("gateway_") || word.starts_with("operator_")).map(str::to_owned)
}
