//! Stands between the operator and the API server: speaks as the operator's ServiceAccount, and notes what is asked for.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use cluster::Cluster;
use http_body_util::{BodyExt as _, Limited};
use hyper::{Method, Request, Response, StatusCode, Uri, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::net::TcpListener;

/// Largest request.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// A verb on a resource of a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Right {
    pub(crate) verb: String,
    pub(crate) group: String,
    /// With the subresource.
    pub(crate) resource: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.verb, self.group, self.resource)
    }
}

#[derive(Default)]
struct Notes {
    used: BTreeSet<String>,
    forbidden: BTreeSet<String>,
}

pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    notes: Arc<Mutex<Notes>>,
}

impl Recorder {
    pub(crate) async fn start(cluster: &Cluster, namespace: &str, account: &str) -> anyhow::Result<Self> {
        let mut kubeconfig = Kubeconfig::read_from(&cluster.kubeconfig)?;
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            user.impersonate = Some(format!("system:serviceaccount:{namespace}:{account}"));
            let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
            user.impersonate_groups = Some(groups.to_vec());
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let notes = Arc::new(Mutex::new(Notes::default()));
        tokio::spawn(serve(listener, client, notes.clone()));
        Ok(Self { address, notes })
    }

    pub(crate) fn used(&self) -> BTreeSet<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).used.clone()
    }

    pub(crate) fn forbidden(&self) -> BTreeSet<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).forbidden.clone()
    }
}

async fn serve(listener: TcpListener, client: Client, notes: Arc<Mutex<Notes>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (client, notes) = (client.clone(), notes.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (client, notes) = (client.clone(), notes.clone());
                async move { Ok::<_, Infallible>(forward(&client, request, &notes).await) }
            });
            // an error: the operator went
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn forward(client: &Client, request: Request<Incoming>, notes: &Mutex<Notes>) -> Response<Body> {
    let right = right(request.method(), request.uri());
    let (mut head, body) = request.into_parts();
    let failed = |status: StatusCode, text: String| {
        let mut response = Response::new(Body::from(text.into_bytes()));
        *response.status_mut() = status;
        response
    };
    let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return failed(StatusCode::BAD_REQUEST, error.to_string()),
    };
    head.headers.remove(hyper::header::HOST);
    head.headers.remove(hyper::header::CONTENT_LENGTH);
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().expect("it was a path");
    let request = Request::from_parts(head, Body::from(body.to_vec()));
    let answer = client.send(request).await;
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(right) = right.map(|right| right.to_string()) {
        notes.used.insert(right.clone());
        // who applies what is not there needs both
        if let (Some(resource), Ok(StatusCode::CREATED)) =
            (right.strip_prefix("patch "), answer.as_ref().map(Response::status))
        {
            notes.used.insert(format!("create {resource}"));
        }
        if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::FORBIDDEN) {
            notes.forbidden.insert(right);
        }
    }
    answer.unwrap_or_else(|error| failed(StatusCode::BAD_GATEWAY, error.to_string()))
}

/// What a request needs, if it is about resources.
fn right(method: &Method, uri: &Uri) -> Option<Right> {
    let mut parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let group = match *parts.first()? {
        "api" if parts.len() > 2 => String::new(),
        "apis" if parts.len() > 3 => parts[1].to_owned(),
        _ => return None,
    };
    parts.drain(..if parts[0] == "api" { 2 } else { 3 });
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let resource = match parts.get(2) {
        Some(sub) => format!("{}/{sub}", parts[0]),
        None => parts[0].to_owned(),
    };
    let watches = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match (method, parts.len() > 1) {
        (&Method::GET, true) => "get",
        (&Method::GET, false) if watches => "watch",
        (&Method::GET, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => return None,
    };
    Some(Right { verb: verb.to_owned(), group, resource })
}

#[test]
fn requests_need_the_rights_that_kubernetes_asks_for() {
    let check = |method: Method, uri: &str, expected: Option<&str>| {
        let found = right(&method, &uri.parse().expect("a uri"));
        assert_eq!(found.map(|right| right.to_string()).as_deref(), expected, "{method} {uri}");
    };
    check(Method::GET, "/api/v1/namespaces/a/pods?watch=true", Some("watch /pods"));
    check(Method::GET, "/api/v1/pods?limit=500", Some("list /pods"));
    check(Method::GET, "/api/v1/namespaces/a", Some("get /namespaces"));
    check(Method::POST, "/apis/apps/v1/namespaces/a/deployments", Some("create apps/deployments"));
    check(
        Method::PATCH,
        "/apis/protocolgateway.io/v1alpha1/namespaces/a/protocolgateways/g/status?force=true",
        Some("patch protocolgateway.io/protocolgateways/status"),
    );
    check(Method::GET, "/apis/apps/v1", None);
    check(Method::GET, "/api/v1", None);
    check(Method::GET, "/version", None);
}
