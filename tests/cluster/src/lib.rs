//! A real Kubernetes on one machine, without Docker, for tests.
//!
//! Two levels: [`Cluster::api`] is etcd, kube-apiserver and kube-controller-manager on a loopback address, needs no root
//! and is there after seconds; [`Cluster::nodes`] adds a scheduler and two nodes that run containers, in network
//! namespaces of their own. Both are shared by the tests of a process, and by those of several processes where
//! `cluster api -- COMMAND` or `cluster nodes -- COMMAND` runs them. Each test takes a namespace: [`Cluster::story`].
//! Where `KUBECONFIG` names a cluster, that one is used and nothing is started.
//!
//! [`world::World`] is what a story about the product has beside that: the operator installed by its chart, a hub on this
//! machine, fleets and devices.
//!
//! Everything ends with the process that started it, and what a killed one left is removed by the next. Neither the
//! machine's addresses nor its packet filter are touched. The programs are built from their Go modules on first use.

pub mod admin;
pub mod cluster;
pub mod definitions;
pub mod devices;
pub mod installed;
pub mod instance;
pub mod programs;
pub mod story;
pub mod up;
pub mod world;

mod cgroup;
mod clean;
mod control;
mod daemon;
mod dns;
mod left;
mod network;
mod node;
mod pki;
mod run;
mod sysctl;

pub use cluster::{Cluster, Node};
pub use instance::Instance;
pub use story::Story;
pub use xtask::image::Image;
