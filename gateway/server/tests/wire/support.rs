//! A gateway with certificates and keys of its own, started for one test.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use device::script::{Device, Login, Transport};
use gateway::server::{Gateway, Options};
use gateway_core::config::GatewayConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The hub in user names and tokens.
pub const HUB: &str = "localhost";
/// Key of every device of these tests: 32 bytes of `k`.
pub const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

/// A running gateway and what its devices need to know.
pub struct World {
    pub gateway: Gateway,
    pub certificates: Certificates,
    pub folder: Folder,
    /// Takes connections and never says a word.
    pub mute_hub: Option<TcpListener>,
}

/// A directory that goes with its owner.
pub struct Folder(PathBuf);

/// One CA for everything, and what it signed.
pub struct Certificates {
    pub ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl World {
    /// A gateway that checks tokens by its own keys (devices `d1` to `d9`, `d1/m1`) and whose hub never answers.
    pub fn without_hub(more_yaml: &str) -> Self {
        let mute_hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let world = Self::start(&local_yaml(mute_hub.local_addr().unwrap().port(), more_yaml));
        Self { mute_hub: Some(mute_hub), ..world }
    }

    pub fn start(yaml: &str) -> Self {
        let (folder, certificates) = (Folder::new(), Certificates::new());
        write_secrets(folder.path(), &certificates);
        let settings =
            GatewayConfig::parse(yaml).unwrap().check().unwrap_or_else(|errors| panic!("{errors:#?}\n{yaml}"));
        let options = Options { cores: 2, secrets: folder.path().to_owned() };
        Self { gateway: Gateway::start(settings, &options).unwrap(), certificates, folder, mute_hub: None }
    }

    /// Address of the listener `plain`, `mqtts` or `wss`.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.gateway.address(listener).unwrap()
    }

    pub fn tls(&self) -> Transport {
        self.tls_as(false, None)
    }

    pub fn tls_as(&self, tls12: bool, identity: Option<(&str, &str)>) -> Transport {
        let identity = identity.map(|(chain, key)| (chain.as_bytes(), key.as_bytes()));
        let config = device::tls::client(self.certificates.ca_pem.as_bytes(), tls12, true, identity).unwrap();
        Transport::Tls(config, "localhost".to_owned())
    }

    pub fn websocket(&self) -> Transport {
        match self.tls() {
            Transport::Tls(config, name) => Transport::WebSocket(config, name),
            other => other,
        }
    }

    /// A device over the plain listener, not connected.
    pub fn open(&self) -> Device {
        Device::open(self.address("plain"), &Transport::Plain).unwrap()
    }

    /// A connected device over the plain listener.
    pub fn connect(&self, device: &str) -> Device {
        Device::connect(self.address("plain"), &Transport::Plain, &login(device)).unwrap()
    }

    /// Waits until a line of the metrics has this value.
    pub fn expect_metric(&self, metric: &str, value: u64) {
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
pub fn login(device: &str) -> Login {
    Login::with_key(HUB, device, KEY).unwrap()
}

/// All three listeners, tokens checked by keys from files, a hub on `hub_port`.
pub fn local_yaml(hub_port: u16, more: &str) -> String {
    format!(
        "listeners:
- {{name: plain, protocol: MQTTPlain, port: 0}}
- {{name: mqtts, protocol: MQTT, address: 127.0.0.1, port: 0}}
- {{name: wss, protocol: MQTTWebSocket, address: 127.0.0.1, port: 0}}
authentication:
  sas: {{verify: Local, deviceKeys: {{secretName: device-keys}}}}
  x509: {{clientCASecretName: ca}}
upstream:
  iotHub: {{hostName: {HUB}, port: {hub_port}, policy: {{name: device, secretName: policy}}, caSecretName: ca}}
tls: {{secretName: tls}}
admin: {{port: 0}}
{more}"
    )
}

fn write_secrets(root: &Path, certificates: &Certificates) {
    let write = |file: &str, text: &str| {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let (chain, key) = certificates.issue("localhost");
    write("tls/tls.crt", &chain);
    write("tls/tls.key", &key);
    write("ca/ca.crt", &certificates.ca_pem);
    write("policy/key", KEY);
    let keys: Vec<_> = (1..=9).map(|n| format!("d{n} {KEY}")).chain([format!("d1/m1 {KEY}")]).collect();
    write("device-keys/keys", &keys.join("\n"));
}

impl Certificates {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { ca_pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for `name`, as host name and as common name.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway-wire-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
