//! The command line. Every flag of `run` can be given by the environment, too, as the chart does.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};

use crate::logging;

/// Kubernetes operator for fleets of IoT protocol gateways: makes what a ProtocolGateway asks for, and keeps it so.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  operator --gateway-image registry.example/gateway:1.0    as the chart runs it; KUBECONFIG outside a cluster
  operator run --help                                      the flags, and their names in the environment
  operator plan -f pgw.yaml --connections 50000            what a fleet of so many devices needs and costs
  RUST_LOG=operator=debug operator run …                   one line for each reconcile and each write

Without a command it is `run`.
Signals: SIGTERM or SIGINT hands over to another replica and exits with 0; a second one exits at once.
Exit codes: 0 stopped as told, 1 failed while running, 2 the command line is wrong."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator [default]
    Run(Box<Run>),
    /// Say how many pods a fleet needs, and how long drains, rollouts and losses would take
    Plan(Plan),
    /// Ask a URL until it answers 200, for `helm test`
    #[command(hide = true)]
    Probe(Probe),
}

/// Flags of `probe`.
#[derive(Debug, Clone, Args)]
pub struct Probe {
    /// Where to ask, in plain HTTP: http://host:port/path
    pub url: String,

    /// How many seconds to try
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub within: u64,
}

impl Cli {
    /// Reads a command line, the program's name first. Where it names no command, it is `run`.
    ///
    /// # Errors
    /// What is wrong, or help that was asked for.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut line: Vec<OsString> = line.into_iter().collect();
        let first = line.get(1).and_then(|word| word.to_str());
        let about_itself = ["-h", "--help", "-V", "--version"];
        if first.is_none_or(|word| word.starts_with('-') && !about_itself.contains(&word)) {
            line.insert(line.len().min(1), "run".into());
        }
        Self::try_parse_from(line)
    }
}

/// Flags of `plan`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Plan {
    /// File with the ProtocolGateway; - for standard input
    #[arg(long, short, value_name = "FILE")]
    pub file: PathBuf,

    /// Devices connected
    #[arg(long, value_name = "N")]
    pub connections: u64,

    /// Pods [default: as many as the devices need]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pods: Option<u32>,

    /// Nodes that the pods are spread over [default: one for each pod]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: Option<u32>,

    /// Shape of the answer
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// Shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// Image of the gateway where a ProtocolGateway names none
    #[arg(long, env, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub gateway_image: String,

    /// Namespace of the operator itself: there are its Lease, Service and Secrets [default: the client's]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", value_parser = namespace)]
    pub namespace: Option<String>,

    /// Name of the pod that this runs in, for the Lease and for Events
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "operator")]
    pub pod_name: String,

    /// Namespaces to watch, with commas between; empty: all
    #[arg(long, env, value_name = "NAMESPACES", value_delimiter = ',', value_parser = namespace)]
    pub watch_namespaces: Vec<String>,

    /// Where to serve /healthz, /readyz and /metrics, in plain HTTP
    #[arg(long, env, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Port of the metrics API for the HorizontalPodAutoscaler; 0: none
    #[arg(long, env, value_name = "PORT", default_value_t = 6443)]
    pub metrics_api_port: u16,

    /// Service in front of the operator, by which the API server reaches the metrics API
    #[arg(long, env, value_name = "NAME")]
    pub service_name: Option<String>,

    /// ClusterRole that owns what the operator makes cluster-wide, so that it goes when the operator is uninstalled
    #[arg(long, env = "OWNER_CLUSTER_ROLE", value_name = "NAME")]
    pub owner: Option<String>,

    /// Lease that the replicas elect their leader by
    #[arg(long, env, value_name = "NAME", default_value = "protocol-gateway-operator",
          value_parser = lease_name)]
    pub lease_name: String,

    /// Seconds after which another replica takes over from one that died. Two thirds of it, 10 at least, and 21 more are how long
    /// pods wait for an order before they let devices go by themselves: 31 for 15, 61 for 60
    #[arg(long, env, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=300))]
    pub lease_seconds: u16,

    /// Shape of log lines
    #[arg(long, env, value_enum, default_value = "text")]
    pub log_format: logging::Format,

    /// What to log, as in RUST_LOG (which wins)
    #[arg(long, env, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

/// The name of a namespace, blanks around it left out, or nothing.
fn namespace(text: &str) -> Result<String, String> {
    let name = text.trim();
    if name.is_empty() || (name.len() <= 63 && is_label(name)) {
        return Ok(name.to_owned());
    }
    Err("the name of a namespace has at most 63 lower-case letters, digits and '-', with a letter or digit at both ends".to_owned())
}

fn lease_name(text: &str) -> Result<String, String> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("the name of a Lease has at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends and \
         around each '.'"
        .to_owned())
}

/// Made as a DNS label, of whatever length.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

impl Run {
    /// Namespaces to watch; none: all.
    pub fn namespaces(&self) -> Vec<String> {
        let mut named: Vec<String> = self.watch_namespaces.iter().map(|name| name.trim().to_owned()).collect();
        named.retain(|name| !name.is_empty());
        named.sort();
        named.dedup();
        named
    }

    /// [`Run::service_name`], unless a template left it empty.
    pub fn service(&self) -> Option<&str> {
        self.service_name.as_deref().filter(|name| !name.is_empty())
    }

    /// [`Run::owner`], unless a template left it empty.
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref().filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Run, clap::Error> {
        let words = std::iter::once("operator").chain(line.split_whitespace());
        let Command::Run(run) = Cli::read(words.map(OsString::from))?.command else { panic!("{line} is not run") };
        Ok(*run)
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_what_it_does_where_nothing_is_said() {
        for line in ["--gateway-image g:1", "run --gateway-image g:1"] {
            let run = parse(line).expect(line);
            assert_eq!(run.gateway_image, "g:1", "{line}");
            assert_eq!((run.lease_seconds, run.metrics_api_port), (15, 6443), "{line}");
        }
        assert!(parse("").is_err(), "it cannot do without an image");
    }

    #[test]
    fn namespaces_are_a_list_and_empty_ones_are_none() {
        let check = |list: &str, expected: &[&str]| {
            let run = parse(&format!("run --gateway-image g --watch-namespaces={list}")).expect(list);
            assert_eq!(run.namespaces(), expected, "{list}");
        };
        check("", &[]);
        check("a", &["a"]);
        check("b,a,,b", &["a", "b"]);
        check("b-1,0", &["0", "b-1"]);
    }

    #[test]
    fn a_plan_needs_a_file_and_a_number_of_devices() {
        let read = |line: &str| Cli::read(line.split_whitespace().map(OsString::from));
        let cli = read("operator plan -f pgw.yaml --connections 50000 -o json").expect("it is right");
        let Command::Plan(plan) = cli.command else { panic!("it is a plan") };
        let expected =
            Plan { file: "pgw.yaml".into(), connections: 50_000, pods: None, nodes: None, output: Output::Json };
        assert_eq!(plan, expected);
        for wrong in [
            "plan",
            "plan -f a",
            "plan -f a --connections -1",
            "plan -f a --connections 1 --nodes 0",
            "plan -f a --connections 1 --pods 0",
        ] {
            assert!(read(&format!("operator {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("--watch-namespaces {}", "a".repeat(64));
        for line in [
            "--watch-namespaces A",
            "--watch-namespaces a,b_c",
            "--watch-namespaces=-a",
            "--watch-namespaces *",
            "--namespace a.b",
            "--lease-name A",
            "--lease-name=",
            "--lease-name a..b",
            "--lease-name a/b",
            long.as_str(),
        ] {
            let error = parse(&format!("run --gateway-image g {line}")).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains("lower-case letters, digits"), "{error}");
        }
        for line in ["--lease-seconds 2", "--lease-seconds 301", "--listen nowhere", "--metrics-api-port 65536"] {
            assert!(parse(&format!("run --gateway-image g {line}")).is_err(), "{line}");
        }
    }
}
