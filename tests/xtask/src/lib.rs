//! What every task of this workspace needs: programs of other origin, a place for them, and progress for people.
//!
//! The tasks themselves are `main.rs`; the cluster harness shares these parts.

pub mod build;
pub mod cache;
pub mod image;
pub mod inspect;
pub mod packages;
pub mod process;
pub mod product;
pub mod sbom;
pub mod step;
pub mod verdict;
