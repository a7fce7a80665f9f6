//! A pod's admin port that says what a test wants.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::pki::Pki;

/// One admin port; it ends with this.
pub(crate) struct FakePod {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    text: Mutex<String>,
    orders: Mutex<Vec<Value>>,
    tls: Mutex<(Arc<ServerConfig>, String)>,
    asked: AtomicUsize,
    connections: AtomicUsize,
}

/// What a pod without troubles says.
pub(crate) fn load(connections: u64) -> Value {
    json!({
        "connections": connections, "handshaking": 0, "connectsTotal": connections, "messagesTotal": 0, "letGoTotal": 0,
        "ready": true, "upstream": {"failing": null, "throttled": false},
        "config": {"inForce": "0011223344556677", "problem": null, "needsRestart": []},
        "secretsProblem": null, "drain": null,
    })
}

impl FakePod {
    pub(crate) async fn start(name: &str, pki: &Pki) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::serve(name, listener, certificate(pki))
    }

    /// With a certificate from elsewhere; the text is its serial number.
    pub(crate) fn serve(name: &str, listener: TcpListener, tls: (Arc<ServerConfig>, String)) -> Self {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            text: Mutex::new(load(0).to_string()),
            orders: Mutex::default(),
            tls: Mutex::new(tls),
            asked: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let task = tokio::spawn(serve(listener, shared.clone())).abort_handle();
        Self { name: name.to_owned(), address, shared, task }
    }

    pub(crate) fn say(&self, load: &Value) {
        self.say_text(&load.to_string());
    }

    pub(crate) fn say_text(&self, text: &str) {
        text.clone_into(&mut self.shared.text.lock().expect("no panic"));
    }

    /// Closes the port and every connection.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }

    /// Serves another certificate from the next connection on.
    pub(crate) fn renew(&self, pki: &Pki) {
        *self.shared.tls.lock().expect("no panic") = certificate(pki);
    }

    /// Of the certificate that it serves.
    pub(crate) fn serial(&self) -> String {
        self.shared.tls.lock().expect("no panic").1.clone()
    }

    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(SeqCst)
    }

    /// That were ever made, and did their handshake.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// That were taken.
    pub(crate) fn orders(&self) -> Vec<Value> {
        self.shared.orders.lock().expect("no panic").clone()
    }
}

impl Drop for FakePod {
    fn drop(&mut self) {
        self.stop();
    }
}

fn certificate(pki: &Pki) -> (Arc<ServerConfig>, String) {
    let pair = pki.issue("control", &["control.a.plants"], ExtendedKeyUsagePurpose::ServerAuth);
    let serial = pair.serial.clone();
    (pki.server(pair), serial)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // they end with this task
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let shared = shared.clone();
        let config = shared.tls.lock().expect("no panic").0.clone();
        connections.spawn(async move {
            let Ok(stream) = TlsAcceptor::from(config).accept(socket).await else { return };
            shared.connections.fetch_add(1, SeqCst);
            let service = service_fn(|request| answer(request, &shared));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (status, text) = match (head.method.as_str(), head.uri.path()) {
        ("GET", "/load") => {
            shared.asked.fetch_add(1, SeqCst);
            (StatusCode::OK, shared.text.lock().expect("no panic").clone())
        }
        ("POST", path) => order(path, &serde_json::from_slice(&body).unwrap_or_default(), shared),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}

/// Takes orders of epochs that do not go back.
fn order(path: &str, order: &Value, shared: &Shared) -> (StatusCode, String) {
    let mut orders = shared.orders.lock().expect("no panic");
    let epoch = order["epoch"].as_i64().unwrap_or(-1);
    if epoch < 0 {
        return (StatusCode::BAD_REQUEST, "epoch: expected a number from 0\n".to_owned());
    }
    if orders.iter().any(|earlier| earlier["epoch"].as_i64() > Some(epoch)) {
        return (StatusCode::CONFLICT, "there was a later epoch\n".to_owned());
    }
    orders.push(order.clone());
    let mut text = shared.text.lock().expect("no panic");
    let mut load: Value = serde_json::from_str(&text).expect("an order comes after a good answer");
    load["drain"] = match path {
        "/drain" => json!({
            "cause": order["cause"], "epoch": epoch, "state": "Draining", "perSecond": order["perSecond"],
            "downTo": order["downTo"], "remaining": 0, "letGo": 0,
        }),
        _ => Value::Null,
    };
    *text = load.to_string();
    (StatusCode::OK, text.clone())
}
