//! The committed definition is the one that the types make, and it is one that an API server takes.

#[test]
fn the_committed_files_are_what_the_types_make() {
    for file in ["crds/protocolgateway.yaml", "charts/protocol-gateway-operator/files/protocolgateway.yaml"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == crds::yaml(), "{file} is stale: run `cargo xtask crds`");
    }
}
