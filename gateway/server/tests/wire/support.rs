//! A gateway with certificates and keys of its own, started for one test.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use device::script::{Device, Login, Transport};
use gateway::{
    config_file::{ConfigFile, Configuration},
    server::{Gateway, Options},
};
use hub::{
    Hub, HubConfig,
    domain::{Identity, Kind, Outcome, Query},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The hub in user names and tokens.
pub(crate) const HUB: &str = "localhost";
/// Key of every device of these tests: 32 bytes of `k`.
pub(crate) const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

/// Devices `f1`, `f2`, … that the gateway has keys of, too, and the hub does not know.
pub(crate) const DEVICES: usize = 2000;

/// A running gateway and what its devices need to know.
pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) certificates: Certificates,
    pub(crate) folder: Folder,
    /// Takes connections and never says a word; kept so that its port stays open.
    _mute_hub: Option<TcpListener>,
    /// A real one, with the devices `d1` to `d9` and keys of its own.
    pub(crate) hub: Option<Hub>,
}

/// Who judges devices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// The hub, by each device's token.
    Hub,
    /// Tokens by the hub, certificates by the gateway, which has a policy for them.
    HubAndCertificates,
    /// The gateway, by [`KEY`].
    Local,
}

/// A directory that goes with its owner.
pub(crate) struct Folder(PathBuf);

/// One CA for everything, and what it signed.
pub(crate) struct Certificates {
    pub(crate) ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl World {
    /// A gateway that checks tokens by its own keys (`d1` to `d9`, `d1/m1`, `f1` to `f2000`) and whose hub never answers.
    pub(crate) fn without_hub(more_yaml: &str) -> Self {
        let mute_hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let world = Self::start(&local_yaml(mute_hub.local_addr().unwrap().port(), more_yaml));
        Self { _mute_hub: Some(mute_hub), ..world }
    }

    /// A gateway in front of a real hub.
    pub(crate) fn with_hub(verify: Verify, more_yaml: &str) -> Self {
        let hub = Hub::start(HubConfig::default()).unwrap();
        for n in 1..=9 {
            hub.add_device(&format!("d{n}")).unwrap();
        }
        let (folder, certificates) = (Folder::new(), Certificates::new());
        folder.write("hub-ca/ca.crt", hub.ca_pem());
        let mut yaml =
            local_yaml(hub.addresses().amqps.port(), more_yaml).replace("caSecretName: ca}", "caSecretName: hub-ca}");
        if verify != Verify::Local {
            yaml = yaml.replace("{verify: Local, deviceKeys: {secretName: device-keys}}", "{verify: Hub}");
        }
        if verify == Verify::Hub {
            yaml = yaml.replace("  x509: {clientCASecretName: ca}\n", "");
            yaml = yaml.replace("policy: {name: device, secretName: policy}, ", "");
        }
        let policy = hub.policy_connection_string("device").unwrap();
        let world = Self::start_in(folder, certificates, &yaml, Some(key_of(&policy)));
        Self { hub: Some(hub), ..world }
    }

    pub(crate) fn start(yaml: &str) -> Self {
        Self::start_in(Folder::new(), Certificates::new(), yaml, None)
    }

    /// Another gateway with the secrets of `world`, whose own stops.
    pub(crate) fn start_beside(world: Self, yaml: &str) -> Self {
        let Self { certificates, folder, gateway, .. } = world;
        gateway.stop();
        Self::start_in(folder, certificates, yaml, None)
    }

    fn start_in(folder: Folder, certificates: Certificates, yaml: &str, policy_key: Option<&str>) -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            // the second test of a run finds logging started
            let _started = gateway::logging::init(gateway::logging::Format::Text, "info");
        }
        write_secrets(&folder, &certificates, policy_key.unwrap_or(KEY));
        folder.mount("config", &[("gateway.yaml", yaml)]);
        let mut file = ConfigFile::new(folder.path().join("config/gateway.yaml"));
        let Configuration { settings, hash } = file.read().unwrap_or_else(|errors| panic!("{errors:#?}\n{yaml}"));
        let (secrets, look_every) = (folder.path().to_owned(), Duration::from_millis(50));
        let options = Options { config: Some((file, hash)), cores: 2, secrets, look_every };
        Self { gateway: Gateway::start(settings, &options).unwrap(), certificates, folder, _mute_hub: None, hub: None }
    }

    /// Address of the listener `plain`, `mqtts` or `wss`.
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        self.gateway.address(listener).unwrap()
    }

    pub(crate) fn tls(&self) -> Transport {
        self.tls_as(false, None)
    }

    pub(crate) fn tls_as(&self, tls12: bool, identity: Option<(&str, &str)>) -> Transport {
        let identity = identity.map(|(chain, key)| (chain.as_bytes(), key.as_bytes()));
        let config = device::tls::client(self.certificates.ca_pem.as_bytes(), tls12, true, identity).unwrap();
        Transport::Tls(config, "localhost".to_owned())
    }

    pub(crate) fn websocket(&self) -> Transport {
        match self.tls() {
            Transport::Tls(config, name) => Transport::WebSocket(config, name),
            other => other,
        }
    }

    /// A device over the plain listener, not connected.
    pub(crate) fn open(&self) -> Device {
        Device::open(self.address("plain"), &Transport::Plain).unwrap()
    }

    /// A connected device over the plain listener.
    pub(crate) fn connect(&self, device: &str) -> Device {
        Device::connect(self.address("plain"), &Transport::Plain, &login(device)).unwrap()
    }

    pub(crate) fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("a world with a hub")
    }

    /// A login with the key that the hub gave this device.
    pub(crate) fn hub_login(&self, device: &str) -> Login {
        let connection_string = self.hub().connection_string(&Identity::device(device)).unwrap();
        Login::with_key(HUB, device, key_of(&connection_string)).unwrap()
    }

    /// Message ids of telemetry that the hub accepted from `device`, in order.
    pub(crate) fn stored(&self, device: &str) -> Vec<String> {
        let query = Query { device: Some(device), kind: Some(Kind::Telemetry), ..Query::default() };
        let mut entries = self.hub().ledger().entries(&query);
        entries.retain(|entry| entry.outcome == Some(Outcome::Accepted));
        entries.into_iter().map(|entry| entry.message_id.unwrap_or_default().to_string()).collect()
    }

    /// Waits until a line of the metrics has this value.
    pub(crate) fn expect_metric(&self, metric: &str, value: u64) {
        let line = format!("{metric} {value}");
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let text = self.gateway.registry().text();
            if text.lines().any(|have| have == line) {
                return;
            }
            let like = metric.split(['{', ' ']).next().unwrap();
            let have: Vec<_> = text.lines().filter(|have| have.starts_with(like) && !have.ends_with(" 0")).collect();
            assert!(Instant::now() < until, "expected {line}, have {have:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A login that is right.
pub(crate) fn login(device: &str) -> Login {
    Login::with_key(HUB, device, KEY).unwrap()
}

/// All three listeners, tokens checked by keys from files, a hub on `hub_port`.
pub(crate) fn local_yaml(hub_port: u16, more: &str) -> String {
    format!(
        "listeners:
- {{name: plain, protocol: MQTTPlain, port: 0}}
- {{name: mqtts, protocol: MQTT, address: 127.0.0.1, port: 0}}
- {{name: wss, protocol: MQTTWebSocket, address: 127.0.0.1, port: 0}}
authentication:
  sas: {{verify: Local, deviceKeys: {{secretName: device-keys}}}}
  x509: {{clientCASecretName: ca}}
tls: {{secretName: tls}}
admin: {{port: 0}}
upstream:
  iotHub: {{hostName: {HUB}, port: {hub_port}, policy: {{name: device, secretName: policy}}, caSecretName: ca}}
{more}"
    )
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "not within patience: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn key_of(connection_string: &str) -> &str {
    connection_string.rsplit_once("SharedAccessKey=").unwrap().1
}

fn write_secrets(folder: &Folder, certificates: &Certificates, policy_key: &str) {
    let write = |file: &str, text: &str| folder.write(file, text);
    let (chain, key) = certificates.issue("localhost");
    write("tls/tls.crt", &chain);
    write("tls/tls.key", &key);
    write("ca/ca.crt", &certificates.ca_pem);
    write("policy/key", policy_key);
    let few = (1..=9).map(|n| format!("d{n} {KEY}"));
    let many = (1..=DEVICES).map(|n| format!("f{n} {KEY}"));
    let keys: Vec<_> = few.chain([format!("d1/m1 {KEY}")]).chain(many).collect();
    write("device-keys/keys", &keys.join("\n"));
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { ca_pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for `name`, as host name and as common name.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway-wire-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Puts files into a directory as a kubelet does: all of them are swapped at once, by one link.
    pub(crate) fn mount(&self, directory: &str, files: &[(&str, &str)]) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (version, directory) = (format!("..{}", COUNT.fetch_add(1, Relaxed)), self.0.join(directory));
        fs::create_dir_all(directory.join(&version)).unwrap();
        let link = |to: &str, at: &str| {
            let new = directory.join("..new");
            std::os::unix::fs::symlink(to, &new).unwrap();
            fs::rename(new, directory.join(at)).unwrap();
        };
        for (name, text) in files {
            let path = directory.join(&version).join(name);
            fs::write(&path, text).unwrap();
            // written a while ago, as far as the gateway can see
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_mins(1)).unwrap();
        }
        link(&version, "..data");
        for (name, _) in files {
            link(&format!("..data/{name}"), name);
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
