//! Pods that a test pretends to run: the API server has them, nobody runs them, and their admin port is here.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::Context;
use bytes::Bytes;
use cluster::Story;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

/// Names of the pods of `gateway`, once there are so many.
pub(crate) async fn pods(story: &Story, gateway: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let api: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
    let begun = std::time::Instant::now();
    loop {
        let found = api.list(&ListParams::default().labels(&operator::names::selector_text(gateway))).await?;
        let names: Vec<String> = found.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
        if names.len() == count {
            return Ok(names);
        }
        anyhow::ensure!(begun.elapsed() < super::support::SOON, "there are {names:?}, not {count}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// One pod.
pub(crate) struct Pretend {
    pub(crate) name: String,
    address: IpAddr,
    said: Arc<Said>,
    _serves: JoinSet<()>,
}

#[derive(Default)]
struct Said {
    load: Mutex<Value>,
    /// Hash of the configuration that it follows.
    config: Mutex<String>,
    orders: Mutex<Vec<Value>>,
}

impl Pretend {
    /// Runs as a pod of `gateway` and is ready, with so many devices. Its certificate is the one that the operator made.
    pub(crate) async fn run(
        story: &Story,
        (gateway, name): (&str, &str),
        address: SocketAddr,
        connections: u64,
    ) -> anyhow::Result<Self> {
        let tls = TlsAcceptor::from(tls(story, gateway).await?);
        let listener = TcpListener::bind(address).await?;
        let said = Arc::new(Said::default());
        let mut serves = JoinSet::new();
        serves.spawn(serve(listener, tls, said.clone()));
        let pod = Self { name: name.to_owned(), address: address.ip(), said, _serves: serves };
        pod.follow(story, gateway).await?;
        pod.say(connections, &Value::Null);
        pod.ready(story, true).await?;
        Ok(pod)
    }

    /// Follows the configuration that is written now.
    pub(crate) async fn follow(&self, story: &Story, gateway: &str) -> anyhow::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(story.client.clone(), &story.namespace);
        let data = api.get(gateway).await?.data.unwrap_or_default();
        let hash = operator::desired::config_hash(data.get("gateway.yaml").context("there is a configuration")?);
        self.said.load.lock().expect("no panic")["config"]["inForce"] = json!(hash);
        *self.said.config.lock().expect("no panic") = hash;
        Ok(())
    }

    pub(crate) fn say(&self, connections: u64, drain: &Value) {
        let config = self.said.config.lock().expect("no panic").clone();
        *self.said.load.lock().expect("no panic") = json!({
            "connections": connections, "handshaking": 0, "connectsTotal": connections, "messagesTotal": 0, "letGoTotal": 0,
            "ready": drain.is_null(), "upstream": {"failing": null, "throttled": false},
            "config": {"inForce": config, "problem": null, "needsRestart": []},
            "secretsProblem": null, "drain": drain,
        });
    }

    /// Its connections to the upstream fail, or do not any more.
    pub(crate) fn fails(&self, why: Option<&str>) {
        self.said.load.lock().expect("no panic")["upstream"]["failing"] = json!(why);
    }

    /// What the kubelet would say of it.
    pub(crate) async fn ready(&self, story: &Story, ready: bool) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let container = json!({"name": "gateway", "image": "i", "imageID": "i", "ready": ready, "started": true,
            "restartCount": 0, "state": {"running": {"startedAt": now}}});
        let condition = |type_: &str, holds: bool| json!({"type": type_, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now});
        let conditions =
            [condition("Ready", ready), condition("ContainersReady", ready), condition("PodScheduled", true)];
        let status = json!({"status": {"phase": "Running", "podIP": self.address, "podIPs": [{"ip": self.address}],
            "conditions": conditions, "containerStatuses": [container]}});
        api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }

    /// Orders that it was given.
    pub(crate) fn orders(&self) -> Vec<Value> {
        self.said.orders.lock().expect("no panic").clone()
    }
}

async fn tls(story: &Story, gateway: &str) -> anyhow::Result<Arc<ServerConfig>> {
    let api: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let secret = api.get(&operator::names::control(gateway)).await?.data.context("it has data")?;
    let file = |name: &str| Ok::<_, anyhow::Error>(secret.get(name).with_context(|| format!("no {name}"))?.0.clone());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&file("ca.crt")?) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(&file("tls.crt")?).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&file("tls.key")?)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    Ok(Arc::new(ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?))
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, said: Arc<Said>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, said) = (tls.clone(), said.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(socket).await else { return };
            let service = service_fn(|request| answer(request, &said));
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(request: Request<Incoming>, said: &Said) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if head.method == "POST" {
        let mut order: Value = serde_json::from_slice(&body).unwrap_or_default();
        order["path"] = json!(head.uri.path());
        let mut load = said.load.lock().expect("no panic");
        load["drain"] = match head.uri.path() {
            "/drain" => json!({"cause": order["cause"], "epoch": order["epoch"], "state": "Draining",
                "perSecond": order["perSecond"], "downTo": order["downTo"], "remaining": load["connections"], "letGo": 0}),
            _ => Value::Null,
        };
        said.orders.lock().expect("no panic").push(order);
    }
    let mut response = Response::new(Full::new(Bytes::from(said.load.lock().expect("no panic").to_string())));
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}
