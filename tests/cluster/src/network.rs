//! The network of a run with nodes: a network namespace for each node, joined by pairs of virtual interfaces.
//!
//! ```text
//!   machine ── 198.18.N.0/30 ── node a: control plane ── 198.18.N.8/30 ── node b
//! ```
//! One interface and one route on the machine, which go with the namespaces. 198.18.0.0/15 is for tests of networks
//! (RFC 2544) and routed nowhere. Pods and Services have addresses inside only.

use std::{net::Ipv4Addr, path::Path, process::Command};

use anyhow::Context;
use xtask::process::run_quietly;

use crate::control::POD_NETWORK;

/// A node's place.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `a` or `b`.
    pub(crate) name: &'static str,
    /// Its network namespace.
    pub(crate) network: String,
    pub(crate) address: Ipv4Addr,
    /// The addresses of its pods, as a part of [`POD_NETWORK`].
    pub(crate) pods: String,
}

/// The two nodes of run `number`.
pub(crate) fn places(number: u8) -> [Place; 2] {
    let place = |name, last, part| Place {
        name,
        network: format!("{}-{name}", prefix(number)),
        address: Ipv4Addr::new(198, 18, number, last),
        pods: format!("10.244.{part}.0/24"),
    };
    [place("a", 2, 0), place("b", 10, 1)]
}

/// What the names of a run's interfaces, namespaces and cgroups begin with.
pub(crate) fn prefix(number: u8) -> String {
    format!("pgw-{number}")
}

/// Makes namespaces, interfaces and routes.
pub(crate) fn make(number: u8) -> anyhow::Result<()> {
    let [a, b] = places(number);
    let machine = prefix(number);
    let at = |last: u8| format!("198.18.{number}.{last}");
    for place in [&a, &b] {
        ip(&["netns", "add", &place.network])?;
        ip(&["-n", &place.network, "link", "set", "lo", "up"])?;
    }
    ip(&["link", "add", &machine, "type", "veth", "peer", "name", "machine", "netns", &a.network])?;
    ip(&["-n", &a.network, "link", "add", "to-b", "type", "veth", "peer", "name", "to-a", "netns", &b.network])?;
    address(None, &machine, &at(1))?;
    address(Some(&a.network), "machine", &at(2))?;
    address(Some(&a.network), "to-b", &at(9))?;
    address(Some(&b.network), "to-a", &at(10))?;
    // without a default route the API server finds no address of its own
    ip(&["-n", &a.network, "route", "add", "default", "via", &at(1)])?;
    ip(&["-n", &b.network, "route", "add", "default", "via", &at(9)])?;
    ip(&["-n", &a.network, "route", "add", &b.pods, "via", &at(10)])?;
    ip(&["-n", &b.network, "route", "add", &a.pods, "via", &at(9)])?;
    ip(&["route", "add", &format!("{}/30", at(8)), "via", &at(2)])?;
    for place in [&a, &b] {
        inside(&place.network, "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
        // pods reach the machine under their node's address: the machine has no route to theirs
        let rule = ["-s", POD_NETWORK, "!", "-d", POD_NETWORK, "-j", "MASQUERADE"];
        inside(&place.network, "iptables", &[&["-w", "-t", "nat", "-A", "POSTROUTING"], &rule[..]].concat())?;
    }
    Ok(())
}

/// Removes the namespaces, and with them interfaces and routes. Nothing to remove is not an error.
pub(crate) fn remove(number: u8) -> anyhow::Result<()> {
    for place in places(number) {
        if Path::new("/run/netns").join(&place.network).exists() {
            ip(&["netns", "delete", &place.network])?;
        }
    }
    // the kernel removes a namespace's interfaces some time after its last process: the next run has the same names
    if Path::new("/sys/class/net").join(prefix(number)).exists() {
        let _ = ip(&["link", "delete", &prefix(number)]);
    }
    Ok(())
}

fn address(network: Option<&str>, interface: &str, address: &str) -> anyhow::Result<()> {
    let network = network.map_or(Vec::new(), |network| vec!["-n", network]);
    let address = format!("{address}/30");
    ip(&[&network[..], &["address", "add", &address, "dev", interface]].concat())?;
    ip(&[&network[..], &["link", "set", interface, "up"]].concat())
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run_quietly(Command::new("ip").args(arguments)).context("the network of the nodes cannot be made")
}

fn inside(network: &str, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let network = format!("--net=/run/netns/{network}");
    run_quietly(Command::new("nsenter").args([&network, "--", program]).args(arguments))
}
