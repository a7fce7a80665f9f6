//! The CustomResourceDefinition: what the types derive, made structural, with the forms of single fields written in.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ProtocolGateway, forms};

/// The definition to install.
///
/// # Panics
/// If the table of forms does not fit the types, which a test excludes.
pub fn definition() -> CustomResourceDefinition {
    let mut crd = serde_json::to_value(ProtocolGateway::crd()).expect("a definition is JSON");
    let schema = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").expect("the derive writes a schema");
    tidy(schema);
    // pods have no resourceClaims that they could name
    schema
        .pointer_mut("/properties/spec/properties/pod/properties/resources/properties")
        .and_then(Value::as_object_mut)
        .and_then(|resources| resources.remove("claims"));
    // stored, it would stand beside the secretName or certManager that a user applies later, and one excludes the others:
    // what is absent is selfSigned when it is read
    schema
        .pointer_mut("/properties/spec/properties/tls")
        .and_then(Value::as_object_mut)
        .and_then(|tls| tls.remove("default"));
    forms::apply(schema.pointer_mut("/properties/spec").expect("the schema has a spec"));
    serde_json::from_value(crd).expect("what was added is of the form")
}

/// [`definition()`] as the text of `crds/protocolgateway.yaml`.
///
/// # Panics
/// As [`definition()`].
pub fn yaml() -> String {
    let body = serde_yaml::to_string(&definition()).expect("a definition is YAML");
    format!("# Written by `cargo xtask crds` from the types in crds/src. Do not edit.\n{body}")
}

/// Takes out what Kubernetes does not know or would let `null` in by: absent is the one way to say nothing.
fn tidy(node: &mut Value) {
    match node {
        Value::Object(object) => {
            if object.get("nullable") == Some(&Value::Bool(true)) {
                object.remove("nullable");
            }
            if matches!(object.get("format"), Some(Value::String(format)) if format.starts_with("uint")) {
                object.remove("format");
            }
            if object.get("default") == Some(&Value::Null) {
                object.remove("default");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}
