//! What pods say at their admin port, asked as the operator asks: with the control certificate, through the API server.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdout, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use device::tls;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::{Story, world::Fleet};

/// How long one question may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Metrics of one pod, as Prometheus reads them.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The value of one line, by its name with its labels as they are written.
    ///
    /// # Errors
    /// There is no such line, or it tells no number.
    pub fn get(&self, name: &str) -> anyhow::Result<f64> {
        let lines = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        let value = lines.clone().find(|(each, _)| *each == name).map(|(_, value)| value);
        Ok(value.with_context(|| format!("no metric {name}"))?.trim().parse()?)
    }
}

impl Fleet<'_> {
    /// The metrics of each of its pods.
    ///
    /// # Errors
    /// A pod that cannot be asked.
    pub async fn metrics(&self) -> anyhow::Result<BTreeMap<String, Metrics>> {
        let story = self.story();
        let name = format!("control.{}.{}", self.name, story.namespace);
        let config = self.control().await?;
        let mut metrics = BTreeMap::new();
        for pod in self.pods().await? {
            let forwarded = Forwarded::begin(story, &pod.name_any())?;
            let (config, name) = (Arc::clone(&config), name.clone());
            let text = tokio::task::spawn_blocking(move || forwarded.ask(config, &name, "/metrics")).await??;
            metrics.insert(pod.name_any(), Metrics(text));
        }
        Ok(metrics)
    }

    /// The sum of one metric over its pods.
    ///
    /// # Errors
    /// As [`Fleet::metrics`] and [`Metrics::get`].
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        self.metrics().await?.values().map(|metrics| metrics.get(name)).sum()
    }

    async fn control(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let story = self.story();
        let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
        let secret = secrets.get(&format!("{}-control-client", self.name)).await?;
        let data = secret.data.unwrap_or_default();
        let part = |key: &str| data.get(key).map(|part| &*part.0).with_context(|| format!("no {key} for control"));
        tls::client(part("ca.crt")?, false, false, Some((part("tls.crt")?, part("tls.key")?)))
    }
}

/// A pod's port at an address of this machine, as long as this value lives.
struct Forwarded {
    kubectl: Child,
    /// It tells of every connection, and ends when nobody would read that.
    _said: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Forwarded {
    fn begin(story: &Story, pod: &str) -> anyhow::Result<Self> {
        let mut command = story.kubectl()?;
        command.args(["port-forward", &format!("pod/{pod}"), ":admin", "--address=127.0.0.1"]);
        let mut kubectl = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut said = BufReader::new(kubectl.stdout.take().context("its output is piped")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let Some(address) = address else {
            kubectl.kill()?;
            kubectl.wait()?;
            bail!("kubectl port-forward says {line:?}");
        };
        Ok(Self { kubectl, _said: said, address })
    }

    fn ask(&self, config: Arc<ClientConfig>, server_name: &str, path: &str) -> anyhow::Result<String> {
        let socket = TcpStream::connect_timeout(&self.address, ANSWER_TIMEOUT)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let tls = ClientConnection::new(config, ServerName::try_from(server_name.to_owned())?)?;
        let mut stream = StreamOwned::new(tls, socket);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {server_name}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        // the end of the TCP connection is the end of the answer
        let ended = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {ended:?}"))?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{path} is answered with {head}");
        Ok(body.to_owned())
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        // one that ended by itself is what is wanted
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
