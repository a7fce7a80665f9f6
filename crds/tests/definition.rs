//! The committed definition is the one that the types make, and it is one that an API server takes.

#[test]
fn the_committed_file_is_what_the_types_make() {
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/protocolgateway.yaml")).unwrap_or_default();
    assert!(committed == crds::yaml(), "crds/protocolgateway.yaml is stale: run `cargo xtask crds`");
}
