//! What `cargo xtask up` leaves running: a cluster with the operator, a hub on this machine, and a fleet between the two.
//!
//! Everything of it has a path in the run's directory among its arguments, so `down` finds and removes it, whoever made it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use device::{
    load::{self, Pace, Plan},
    sas,
    script::Login,
    tls,
};
use serde_json::{Value, json};
use xtask::{
    build::{self, Profile},
    process::{run_quietly, workspace_root},
    step::{say, step},
};

use crate::{
    Cluster, Instance,
    daemon::Starter,
    installed::{Installed, NAMESPACE},
    instance,
    programs::KUBERNETES_VERSION,
    world::condition,
};

/// The fleet's ProtocolGateway, but for what only this machine knows.
const EXAMPLE: &str = "charts/examples/plant-a.yaml";
/// Where it is.
const FLEET_NAMESPACE: &str = "plant";
const FLEET: &str = "plant-a";
/// Devices that the hub knows at least.
const DEVICES_MIN: u32 = 10;
/// How long the hub may take to listen.
const HUB_TIMEOUT: Duration = Duration::from_secs(30);
/// From the declaration until devices can connect.
const FLEET_TIMEOUT: Duration = Duration::from_mins(4);
/// Life of the token that is printed.
const TOKEN_SECONDS: u64 = 24 * 3600;
/// How long the devices of the proof send.
const PROOF: Duration = Duration::from_secs(3);

/// How much of it.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Devices that the hub knows, and that connect once as a proof
    #[arg(long, default_value_t = DEVICES_MIN)]
    pub devices: u32,
    /// The cluster alone: no operator, no hub, no fleet
    #[arg(long)]
    pub bare: bool,
}

/// Makes whatever of it is not there, and says how to use it.
///
/// # Errors
/// What cannot be built or started, with its last words; what was started stays, for people to look at, until `down`.
pub fn up(arguments: &Arguments) -> anyhow::Result<()> {
    let cluster = if let Some(cluster) = instance::left_running()? {
        say("the cluster of the last `up` is there and works");
        cluster
    } else {
        // one that does not work, if there is one
        instance::down()?;
        Instance::leave_nodes()?
    };
    if arguments.bare {
        return introduce(&cluster);
    }
    Installed::install(&cluster)?;
    let machine = cluster.machine().context("the cluster's nodes are known")?;
    let hub = step("start the hub", || start_hub(&cluster, machine, arguments.devices))?;
    let fleet = step("declare a fleet and wait until devices can connect", || declare(&cluster, &hub))?;
    let world = fleet.write(&cluster, &hub)?;
    step(&format!("connect {} devices through the Service", arguments.devices), || prove(&fleet, &hub, arguments))?;
    introduce(&cluster)?;
    fleet.introduce(&hub, &world);
    Ok(())
}

fn introduce(cluster: &Cluster) -> anyhow::Result<()> {
    let nodes = cluster.nodes.iter().map(|node| node.address.to_string()).collect::<Vec<_>>().join(" and ");
    println!(
        "
A Kubernetes {KUBERNETES_VERSION} of two nodes runs on this machine, and stays until `cargo xtask down`.

  export KUBECONFIG={}
  export PATH={}:$PATH

Try:
  kubectl get nodes -o wide
  kubectl get pods --all-namespaces
  helm list --all-namespaces

NodePorts answer at {nodes}.",
        cluster.kubeconfig.display(),
        cluster.programs()?.display(),
    );
    Ok(())
}

/// What the hub writes about itself, with where its CA is.
struct Hub {
    host_name: String,
    amqps: SocketAddr,
    https: SocketAddr,
    ca_file: PathBuf,
    described: Value,
}

/// The one that runs, or a new one: on this machine, at the address by which pods reach it.
fn start_hub(cluster: &Cluster, machine: Ipv4Addr, devices: u32) -> anyhow::Result<Hub> {
    let file = cluster.kubeconfig.with_file_name("hub.json");
    if let Ok(hub) = Hub::read(&file)
        && TcpStream::connect_timeout(&hub.amqps, Duration::from_secs(1)).is_ok()
    {
        anyhow::ensure!(
            hub.devices().count() >= devices as usize,
            "the hub of the last `up` knows {} devices: `cargo xtask down` first",
            hub.devices().count()
        );
        say("the hub of the last `up` is there and works");
        return Ok(hub);
    }
    if file.exists() {
        fs::remove_file(&file)?;
    }
    let [program] = build::build(["hub"], Profile::Dev)?;
    let directory = cluster.kubeconfig.parent().context("a kubeconfig stands in a directory")?.to_path_buf();
    let starter = Starter { directory: directory.clone(), detached: true };
    let address = machine.to_string();
    let [amqps, https] = [5671, 443].map(|port| free_or_any(machine, port).to_string());
    let arguments = [
        ["--name", &address],
        ["--listen", &address],
        ["--amqps-port", &amqps],
        ["--https-port", &https],
        ["--devices", &devices.max(DEVICES_MIN).to_string()],
        ["--ca-out", &directory.join("hub-ca.pem").to_string_lossy()],
        ["--describe", &file.to_string_lossy()],
    ]
    .map(|pair| pair.map(str::to_owned));
    let arguments = arguments.as_flattened();
    let mut daemon = starter.start("hub", None, &program, arguments)?;
    let begun = Instant::now();
    while !file.exists() {
        daemon.still_runs()?;
        if begun.elapsed() > HUB_TIMEOUT {
            bail!("the hub does not listen after {HUB_TIMEOUT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Hub::read(&file)
}

/// What SDKs insist on, where nobody else has it.
fn free_or_any(address: Ipv4Addr, port: u16) -> u16 {
    if TcpListener::bind((address, port)).is_ok() { port } else { 0 }
}

impl Hub {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let described: Value = serde_json::from_str(&text)?;
        let text = |key: &str| described[key].as_str().with_context(|| format!("the hub says nothing of {key}"));
        Ok(Self {
            host_name: text("hostName")?.to_owned(),
            amqps: text("amqps")?.parse()?,
            https: text("https")?.parse()?,
            ca_file: file.with_file_name("hub-ca.pem"),
            described,
        })
    }

    /// Id and key of each device.
    fn devices(&self) -> impl Iterator<Item = (&str, &str)> {
        let devices = self.described["devices"].as_array().into_iter().flatten();
        devices.filter_map(|device| Some((device["deviceId"].as_str()?, device["primaryKey"].as_str()?)))
    }
}

/// Where devices connect to the fleet.
struct Fleet {
    addresses: Vec<SocketAddr>,
    server_name: String,
    ca_pem: String,
}

fn declare(cluster: &Cluster, hub: &Hub) -> anyhow::Result<Fleet> {
    let kubectl = Kubectl { cluster };
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FLEET_NAMESPACE}}))?;
    let ca = fs::read_to_string(&hub.ca_file).context("cannot read the hub's CA")?;
    kubectl.apply(&json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "hub-ca", "namespace": FLEET_NAMESPACE}, "stringData": {"ca.crt": ca},
    }))?;
    let example =
        fs::read_to_string(workspace_root().join(EXAMPLE)).with_context(|| format!("cannot read {EXAMPLE}"))?;
    let mut gateway: Value = serde_saphyr::from_str(&example).with_context(|| format!("cannot read {EXAMPLE}"))?;
    fit(&mut gateway, cluster, hub);
    kubectl.apply(&gateway)?;
    wait(&kubectl)?;
    let service = kubectl.get("service", FLEET)?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let port = ports.iter().find(|port| port["name"] == "mqtts").and_then(|port| port["nodePort"].as_u64());
    let port = u16::try_from(port.context("the Service has no node port mqtts")?)?;
    Ok(Fleet {
        addresses: cluster.nodes.iter().map(|node| SocketAddr::from((node.address, port))).collect(),
        server_name: format!("{FLEET}.{FLEET_NAMESPACE}.svc"),
        ca_pem: kubectl.secret(&format!("{FLEET}-tls"), "ca.crt")?,
    })
}

/// The example is for a cloud: its hub and its load balancer are not here, and two small machines are enough.
fn fit(gateway: &mut Value, cluster: &Cluster, hub: &Hub) {
    let nodes: Vec<String> = cluster.nodes.iter().map(|node| node.address.to_string()).collect();
    gateway["metadata"]["namespace"] = json!(FLEET_NAMESPACE);
    let spec = &mut gateway["spec"];
    spec["upstream"]["iotHub"]["hostName"] = json!(hub.host_name);
    spec["upstream"]["iotHub"]["port"] = json!(hub.amqps.port());
    spec["upstream"]["iotHub"]["caSecretName"] = json!("hub-ca");
    spec["tls"]["selfSigned"]["ipAddresses"] = json!(nodes);
    // from this machine, every node must answer
    spec["service"] = json!({"type": "NodePort", "externalTrafficPolicy": "Cluster"});
    spec["pod"]["resources"] = json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}});
}

/// Says each change of what the fleet says of itself, until it is ready.
fn wait(kubectl: &Kubectl<'_>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut last = String::new();
    loop {
        let gateway = kubectl.get("protocolgateway", FLEET)?;
        let ready = condition(&gateway, "Ready").cloned().unwrap_or_default();
        let current = gateway["status"]["observedGeneration"] == gateway["metadata"]["generation"];
        if current && ready["status"] == "True" {
            return Ok(());
        }
        let message = ready["message"].as_str().unwrap_or("the operator has not looked at it yet").to_owned();
        if message != last {
            say(&message);
            last = message;
        }
        if begun.elapsed() > FLEET_TIMEOUT {
            bail!("the fleet is not ready after {FLEET_TIMEOUT:?}: {last}");
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// The devices of the user's own choice connect, send and get their acknowledgements.
fn prove(fleet: &Fleet, hub: &Hub, arguments: &Arguments) -> anyhow::Result<()> {
    let devices = hub.devices().take(arguments.devices as usize);
    let logins =
        devices.map(|(id, key)| Login::with_key(&hub.host_name, id, key)).collect::<anyhow::Result<Vec<_>>>()?;
    if logins.is_empty() {
        return Ok(());
    }
    let outcome = load::run(
        &Plan {
            addresses: fleet.addresses.clone(),
            tls: Some((tls::client(fleet.ca_pem.as_bytes(), false, false, None)?, fleet.server_name.clone())),
            identities: Vec::new(),
            pace: Pace::Open { per_second: logins.len() as f64, window: 8 },
            logins,
            payload_bytes: 64,
            run: None,
            subscribe: false,
            connects_per_second: 200.0,
            warm_up: Duration::ZERO,
            time: PROOF,
            settle: Duration::from_secs(30),
            reconnect: true,
            stop_file: None,
        },
        |_second| (),
    )?;
    let total = outcome.total;
    say(&format!("sent {} · acknowledged {}", total.sent, total.acknowledged));
    anyhow::ensure!(total.sent == total.acknowledged, "not every message was acknowledged: the hub's log says more");
    Ok(())
}

impl Fleet {
    /// `local.json`, as `cargo xtask local` writes it: `device load --world` reads it.
    fn write(&self, cluster: &Cluster, hub: &Hub) -> anyhow::Result<PathBuf> {
        let at = |name: &str| cluster.kubeconfig.with_file_name(name);
        fs::write(at("fleet-ca.pem"), &self.ca_pem)?;
        let address = self.addresses.first().context("a cluster has a node")?;
        let world = json!({
            "caFile": at("fleet-ca.pem"),
            "hub": {"hostName": hub.host_name, "amqps": hub.amqps, "https": format!("https://{}", hub.https)},
            "gateway": {"hostName": self.server_name, "listeners": {"mqtts": address}},
            "devices": hub.described["devices"],
        });
        fs::write(at("local.json"), serde_json::to_string_pretty(&world)?)?;
        Ok(at("local.json"))
    }

    fn introduce(&self, hub: &Hub, world: &Path) {
        let (Some((id, key)), Some(address)) = (hub.devices().next(), self.addresses.first()) else { return };
        let resource = format!("{}/devices/{id}", hub.host_name);
        let token = sas::token(&resource, key, None, sas::unix_now() + TOKEN_SECONDS).unwrap_or_default();
        println!(
            "
The fleet {FLEET} in {FLEET_NAMESPACE} bridges to the local hub {host}.

  kubectl --namespace {FLEET_NAMESPACE} get pgw
  kubectl --namespace {FLEET_NAMESPACE} describe pgw {FLEET}
  kubectl --namespace {FLEET_NAMESPACE} logs --selector app.kubernetes.io/instance={FLEET} --prefix --follow
  kubectl --namespace {FLEET_NAMESPACE} get hpa {FLEET}
  kubectl --namespace {NAMESPACE} get pods,lease

A message:
  mosquitto_pub -h {ip} -p {port} --cafile {ca} -V mqttv311 -q 1 -i {id} -u '{host}/{id}/?api-version=2021-04-12' -P '{token}' -t 'devices/{id}/messages/events/' -m hello
Many:
  cargo run --package device -- load --world {world} --rate 100 --for 30 --reconnect
The hub prints what it receives:
  tail -f {log}",
            host = hub.host_name,
            ip = address.ip(),
            port = address.port(),
            ca = world.with_file_name("fleet-ca.pem").display(),
            world = world.display(),
            log = world.with_file_name("logs").join("hub.log").display(),
        );
    }
}

/// `kubectl` for what is needed here.
struct Kubectl<'a> {
    cluster: &'a Cluster,
}

impl Kubectl<'_> {
    fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let file = self.cluster.kubeconfig.with_file_name("apply.json");
        fs::write(&file, object.to_string())?;
        run_quietly(self.cluster.kubectl()?.args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(&file))?;
        Ok(fs::remove_file(&file)?)
    }

    fn get(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let mut command = self.cluster.kubectl()?;
        let output = command.args(["--namespace", FLEET_NAMESPACE, "get", kind, name, "--output=json"]).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn secret(&self, name: &str, key: &str) -> anyhow::Result<String> {
        use base64::Engine as _;
        let secret = self.get("secret", name)?;
        let value = secret["data"][key].as_str().with_context(|| format!("the Secret {name} has no {key}"))?;
        Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(value)?)?)
    }
}
