//! Who asks, if it is not the API server that says so, and whether they may: the API server is asked, and its answers are
//! kept for a few seconds.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::timeout};
use tracing::warn;

use super::{
    bodies::Refusal,
    cache::Cache,
    counters::Counters,
    front_proxy::User,
    paths::{GROUP, Wanted},
};

/// Questions to the API server at a time.
const REVIEWS_MAX: usize = 32;
/// For an answer of the API server, waiting for a turn included.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Tokens whose user is kept.
const TOKENS_MAX: usize = 1024;
/// Permissions that are kept.
const GRANTS_MAX: usize = 8192;
/// Longer tokens are none: a header has no more.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Asks the API server.
pub(super) struct Access {
    client: Client,
    counters: Counters,
    turns: Semaphore,
    /// By SHA-256 of the token: no token is kept.
    tokens: Mutex<Cache<Vec<u8>, Option<User>>>,
    grants: Mutex<Cache<(User, Wanted), Grant>>,
}

/// Whether somebody may, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    allowed: bool,
    reason: Option<String>,
}

impl Access {
    pub(super) fn new(client: Client, counters: Counters) -> Self {
        Self {
            client,
            counters,
            turns: Semaphore::new(REVIEWS_MAX),
            tokens: Mutex::new(Cache::new(TOKENS_MAX)),
            grants: Mutex::new(Cache::new(GRANTS_MAX)),
        }
    }

    /// Whose token it is.
    pub(super) async fn user(&self, token: &str) -> Result<User, Refusal> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::unauthorized());
        }
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        let known = lock(&self.tokens).get(&key, Instant::now());
        let user = if let Some(user) = known {
            user
        } else {
            let user = self.review_token(token).await?;
            self.keep(&self.tokens, key, user.clone());
            user
        };
        user.ok_or_else(Refusal::unauthorized)
    }

    /// Whether `user` may read what is wanted.
    pub(super) async fn check(&self, user: &User, wanted: &Wanted) -> Result<(), Refusal> {
        let key = (user.clone(), wanted.clone());
        let known = lock(&self.grants).get(&key, Instant::now());
        let grant = if let Some(grant) = known {
            grant
        } else {
            let grant = self.review_access(user, wanted).await?;
            self.keep(&self.grants, key, grant.clone());
            grant
        };
        if grant.allowed { Ok(()) } else { Err(Refusal::forbidden(&user.name, wanted, grant.reason.as_deref())) }
    }

    fn keep<K: std::hash::Hash + Eq, V: Clone>(&self, cache: &Mutex<Cache<K, V>>, key: K, value: V) {
        if !lock(cache).put(key, value, Instant::now()) {
            self.counters.limit("cache");
        }
    }

    async fn review_token(&self, token: &str) -> Result<Option<User>, Refusal> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = self.ask("token", TokenReview { spec, ..TokenReview::default() }).await?;
        let status = review.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).and_then(named);
        self.count("token", if user.is_some() { "allowed" } else { "denied" });
        Ok(user)
    }

    async fn review_access(&self, user: &User, wanted: &Wanted) -> Result<Grant, Refusal> {
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            resource_attributes: Some(attributes(wanted)),
            non_resource_attributes: None,
        };
        let review = self.ask("access", SubjectAccessReview { spec, ..SubjectAccessReview::default() }).await?;
        let status = review.status.unwrap_or_default();
        self.count("access", if status.allowed { "allowed" } else { "denied" });
        Ok(Grant { allowed: status.allowed, reason: status.reason })
    }

    async fn ask<K>(&self, kind: &str, review: K) -> Result<K, Refusal>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let asked = async {
            let Ok(_turn) = self.turns.acquire().await else { return Ok(None) };
            api.create(&PostParams::default(), &review).await.map(Some)
        };
        let problem = match timeout(REVIEW_TIMEOUT, asked).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            // what it says may quote what was sent
            Ok(Err(kube::Error::Api(status))) => format!("{} {}", status.code, status.reason),
            Ok(Err(_) | Ok(None)) => "it cannot be reached".to_owned(),
            Err(_) => {
                self.counters.limit("reviews");
                "no answer in time".to_owned()
            }
        };
        self.count(kind, "failed");
        warn!(review = kind, problem, "the API server does not say who may read metrics");
        Err(Refusal::unavailable(format!("the API server does not say who may read metrics: {problem}")))
    }

    fn count(&self, review: &str, result: &str) {
        self.counters.reviews.with_label_values(&[review, result]).inc();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named(info: UserInfo) -> Option<User> {
    let UserInfo { username, uid, groups, extra } = info;
    Some(User {
        name: username.filter(|name| !name.is_empty())?,
        uid: uid.unwrap_or_default(),
        groups: groups.unwrap_or_default(),
        extra: extra.unwrap_or_default(),
    })
}

/// As the API server itself would read the path.
fn attributes(wanted: &Wanted) -> ResourceAttributes {
    ResourceAttributes {
        verb: Some("get".to_owned()),
        group: Some(GROUP.to_owned()),
        version: Some(wanted.version.name().to_owned()),
        resource: Some(wanted.resource.clone()),
        subresource: Some(wanted.metric.clone()),
        namespace: Some(wanted.namespace.clone()),
        name: Some(wanted.name.clone()),
        ..ResourceAttributes::default()
    }
}
