//! The API of the operator: `ProtocolGateway`, `protocolgateway.io/v1alpha1`. Types and rules; it talks to no cluster.
//!
//! In reading order: [`spec`] is what users write, with the rules that join fields; [`cluster`] its cluster half (the gateway
//! half is `gateway_core::config`, field for field); [`forms`] what single fields must look like; [`status`] what the
//! operator answers. [`definition()`] is all of it as a CustomResourceDefinition; `cargo xtask crds` writes it to
//! `crds/protocolgateway.yaml`.

#![expect(unreachable_pub, reason = "the derive KubeSchema writes a copy of each struct into a block of its own")]

pub mod cluster;
mod definition;
mod forms;
mod rules;
pub mod spec;
pub mod status;

pub use self::{
    definition::{definition, yaml},
    spec::{ProtocolGateway, ProtocolGatewaySpec},
    status::ProtocolGatewayStatus,
};

/// API group.
pub const GROUP: &str = "protocolgateway.io";
/// `apiVersion` of every object of ours.
pub const API_VERSION: &str = "protocolgateway.io/v1alpha1";
/// `kind`.
pub const KIND: &str = "ProtocolGateway";
/// Plural, as in paths and RBAC.
pub const PLURAL: &str = "protocolgateways";
