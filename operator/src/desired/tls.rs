//! Certificates: which there must be, and the next step towards them. Decides only; keys are made where it is carried out.
//!
//! The fleet's own CA lives in a Secret, and that Secret is the state. Each step is one write of one Secret, and the next
//! step follows from what is there: a crash between any two loses nothing.
//!
//! ```text
//!                  2/3 of life            + overlap, all trust both      + overlap, all signed anew
//!  (none) ─Create─► current ──AddNext──► current+next ──Promote──► previous+current ──DropPrevious──► current
//! ```

use std::{collections::BTreeSet, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use kube::core::DynamicObject;
use serde::Serialize;
use serde_json::json;

use super::{Checked, Context, Problem, object};
use crate::{
    names,
    observe::{Authority, Certificate, Observed, Use},
    secrets::{self, Reference},
};

/// Life of the fleet's own CA: ten years.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(87_600);
/// How long a new CA is trusted before it signs, and an old one after: devices must learn of it by other ways.
const OVERLAP: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A CA that has no more than this left signs nothing more if another can.
const LAST: SignedDuration = SignedDuration::from_hours(24);
/// Life of a certificate where nothing is said: 90 days.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(2160);

/// One step: one write of one Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "step")]
pub enum Step {
    /// Make the CA: `ca.crt`, `ca.key`.
    CreateAuthority {
        /// Secret to write.
        secret: String,
        /// Life of the CA in seconds.
        life_s: i64,
    },
    /// Make the CA that will sign: `next.crt`, `next.key`.
    AddNextAuthority {
        /// Secret to write.
        secret: String,
        /// Life of the CA in seconds.
        life_s: i64,
    },
    /// The next CA signs from now on; the one that signed stays trusted as `previous.crt`.
    PromoteNextAuthority {
        /// Secret to write.
        secret: String,
    },
    /// The CA that signed is not trusted any more.
    DropPreviousAuthority {
        /// Secret to write.
        secret: String,
    },
    /// Make a key and a certificate, signed by the current CA: `tls.crt`, `tls.key`, and whom to trust as `ca.crt`.
    Issue(Leaf),
    /// Keep key and certificate and write whom to trust: `ca.crt`.
    Trust {
        /// Secret to write.
        secret: String,
        /// Serial numbers of the CAs.
        trust: Vec<String>,
    },
}

impl Step {
    /// What it is called, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateAuthority { .. } => "create authority",
            Self::AddNextAuthority { .. } => "add next authority",
            Self::PromoteNextAuthority { .. } => "promote next authority",
            Self::DropPreviousAuthority { .. } => "drop previous authority",
            Self::Issue(_) => "issue",
            Self::Trust { .. } => "trust",
        }
    }

    /// The Secret that it writes.
    pub fn secret(&self) -> &String {
        match self {
            Self::CreateAuthority { secret, .. }
            | Self::AddNextAuthority { secret, .. }
            | Self::PromoteNextAuthority { secret }
            | Self::DropPreviousAuthority { secret }
            | Self::Trust { secret, .. } => secret,
            Self::Issue(leaf) => &leaf.secret,
        }
    }
}

/// A certificate to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaf {
    /// Secret to write.
    pub secret: String,
    /// What it may be used for.
    pub purpose: Purpose,
    /// DNS names; the first is the common name, too.
    pub dns_names: BTreeSet<String>,
    /// Addresses.
    pub ip_addresses: BTreeSet<String>,
    /// Life in seconds.
    pub life_s: i64,
    /// Serial number of the CA that signs.
    pub authority: String,
    /// Serial numbers of the CAs in `ca.crt`.
    pub trust: Vec<String>,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// By a server.
    Server,
    /// By a client.
    Client,
}

/// What there must be of Secrets that the operator fills.
pub(super) struct Certificates {
    /// The next steps. Those about certificates wait for the CA.
    pub(super) steps: Vec<Step>,
    /// Every Secret that is needed.
    pub(super) secrets: BTreeSet<String>,
    /// Secrets of these names belong to somebody else.
    pub(super) taken: Vec<String>,
}

/// `in_force` is what pods run by: it may need a certificate that the spec does not ask for any more.
pub(super) fn certificates(context: &Context<'_>, in_force: Option<&Checked>) -> Certificates {
    let secret = names::authority(&context.name);
    let leaves = leaves(context, in_force);
    let mut secrets: BTreeSet<String> = leaves.iter().map(|leaf| leaf.secret.clone()).collect();
    secrets.insert(secret.clone());
    let is_taken = |secret: &String| context.observed.foreign.contains(&format!("Secret {secret}"));
    let taken = secrets.iter().filter(|secret| is_taken(secret)).map(|secret| format!("Secret {secret}")).collect();
    if context.gateway.spec.tls.cert_manager.is_some() {
        // filled by another, and not to be taken from under its hands
        secrets.insert(names::serving(&context.name));
    }
    // what it holds is not known: it is neither written nor deleted
    let named = names::secrets(&context.name).into_iter();
    secrets.extend(named.filter(|secret| context.observed.forbidden.contains_key(secret)));
    let leaves = leaves.into_iter().filter(|leaf| !is_taken(&leaf.secret)).collect();
    let steps = if is_taken(&secret) { Vec::new() } else { steps(context.observed, leaves, secret) };
    Certificates { steps, secrets, taken }
}

/// The next steps of the CA in `secret` and of what it signs, from its state, the Secrets of `leaves` and the time in
/// `observed`. By whom a leaf is signed is filled in.
pub fn steps(observed: &Observed, leaves: Vec<Leaf>, secret: String) -> Vec<Step> {
    if observed.forbidden.contains_key(&secret) {
        return Vec::new();
    }
    let Some(authority) = &observed.authority else {
        return vec![Step::CreateAuthority { secret, life_s: AUTHORITY_LIFE.as_secs() }];
    };
    let now = observed.now;
    let is_blind = leaves.iter().any(|leaf| observed.forbidden.contains_key(&leaf.secret));
    let leaves: Vec<Step> =
        leaves.into_iter().filter_map(|leaf| leaf_step(observed, signed_by(authority, leaf))).collect();
    let moves = authority_step(authority, now, secret);
    // the CA moves on only when everything below it has followed; at its end there is nothing to wait for
    let first = (leaves.is_empty() && !is_blind) || now >= authority.current.not_after - LAST;
    moves.filter(|_| first).map_or(leaves, |step| vec![step])
}

fn authority_step(authority: &Authority, now: Timestamp, secret: String) -> Option<Step> {
    let (due, step) = next_authority_step(authority, secret);
    (now >= due).then_some(step)
}

/// The next step of the CA, and when it is due.
fn next_authority_step(authority: &Authority, secret: String) -> (Timestamp, Step) {
    let Authority { current, next, previous } = authority;
    match (next, previous) {
        (Some(next), _) => {
            let due = (next.not_before + OVERLAP).min(current.not_after - LAST);
            (due, Step::PromoteNextAuthority { secret })
        }
        // it had an overlap before it signed: two have passed when it has signed for one
        (None, Some(_)) => (current.not_before + OVERLAP * 2, Step::DropPreviousAuthority { secret }),
        (None, None) => {
            let life_s = AUTHORITY_LIFE.as_secs();
            (two_thirds(current), Step::AddNextAuthority { secret, life_s })
        }
    }
}

/// When the next step is due, if nothing else changes: for looking again then.
pub fn due<'a>(authority: &Authority, leaves: impl Iterator<Item = &'a Certificate>) -> Timestamp {
    let (moves, _) = next_authority_step(authority, String::new());
    leaves.map(two_thirds).fold(moves, Timestamp::min)
}

/// When two thirds of its life are gone.
pub(crate) fn two_thirds(certificate: &Certificate) -> Timestamp {
    let life = certificate.not_before.duration_until(certificate.not_after);
    certificate.not_before + life * 2 / 3
}

/// Every certificate that the own CA signs. By whom is filled in by [`signed_by`].
fn leaves(context: &Context<'_>, in_force: Option<&Checked>) -> Vec<Leaf> {
    let leaf = |secret, purpose, dns_names: BTreeSet<String>| Leaf {
        secret,
        purpose,
        dns_names,
        ip_addresses: BTreeSet::new(),
        life_s: LEAF_LIFE.as_secs(),
        authority: String::new(),
        trust: Vec::new(),
    };
    let control_host = names::control_host(&context.name, &context.namespace);
    let mut leaves = vec![
        leaf(names::control(&context.name), Purpose::Server, [control_host].into()),
        leaf(names::control_client(&context.name), Purpose::Client, [names::OPERATOR_APP.to_owned()].into()),
    ];
    let serving = names::serving(&context.name);
    let tls = &context.gateway.spec.tls;
    if let Some(wanted) = &tls.self_signed {
        let life = wanted.duration.as_ref().and_then(gateway_core::config::Quantity::duration);
        leaves.push(Leaf {
            ip_addresses: wanted.ip_addresses.iter().map(|address| canonical(address)).collect(),
            life_s: life.map_or(LEAF_LIFE.as_secs(), |life| life.as_secs().cast_signed()),
            ..leaf(serving, Purpose::Server, serving_names(context, &wanted.dns_names))
        });
    } else if let Some(certificate) = still_served(context, in_force, &serving) {
        leaves.push(Leaf {
            ip_addresses: certificate.ip_addresses.clone(),
            ..leaf(serving, Purpose::Server, certificate.dns_names.clone())
        });
    }
    leaves
}

/// Our own certificate, where pods still serve it because what the spec asks for instead will not do.
fn still_served<'a>(context: &Context<'a>, in_force: Option<&Checked>, serving: &str) -> Option<&'a Certificate> {
    let in_use = in_force?.settings.tls_secret_name.as_deref() == Some(serving);
    let facts = context.observed.secrets.get(serving).filter(|facts| in_use && facts.authority.is_some())?;
    facts.certificate.as_ref()
}

/// An address as certificates are read: written in another way it would never be found in one.
fn canonical(address: &str) -> String {
    address.parse().map_or_else(|_| address.to_owned(), |address: IpAddr| address.to_string())
}

fn signed_by(authority: &Authority, leaf: Leaf) -> Leaf {
    let trusted = [Some(&authority.current), authority.next.as_ref(), authority.previous.as_ref()];
    let trust = trusted.into_iter().flatten().map(|certificate| certificate.serial.clone()).collect();
    Leaf { authority: authority.current.serial.clone(), trust, ..leaf }
}

/// The Service's names inside the cluster, and those that devices use.
fn serving_names(context: &Context<'_>, wanted: &[String]) -> BTreeSet<String> {
    let (name, namespace) = (&context.name, &context.namespace);
    let inside = [name.clone(), format!("{name}.{namespace}"), format!("{name}.{namespace}.svc")];
    inside.into_iter().chain(wanted.iter().cloned()).collect()
}

fn leaf_step(observed: &Observed, leaf: Leaf) -> Option<Step> {
    if observed.forbidden.contains_key(&leaf.secret) {
        return None;
    }
    let facts = observed.secrets.get(&leaf.secret);
    let Some((facts, certificate)) = facts.and_then(|facts| Some((facts, facts.certificate.as_ref()?))) else {
        return Some(Step::Issue(leaf));
    };
    let fits = certificate.dns_names == leaf.dns_names && certificate.ip_addresses == leaf.ip_addresses;
    let signed = facts.authority.as_ref() == Some(&leaf.authority) && facts.wrong.is_empty();
    if !fits || !signed || observed.now >= two_thirds(certificate) {
        return Some(Step::Issue(leaf));
    }
    (facts.trust != leaf.trust).then_some(Step::Trust { secret: leaf.secret, trust: leaf.trust })
}

/// cert-manager's Certificate, where the spec asks for one and the cluster knows it.
pub(super) fn objects(context: &Context<'_>) -> Vec<DynamicObject> {
    let Some(wanted) = &context.gateway.spec.tls.cert_manager else { return Vec::new() };
    if !context.observed.apis.cert_manager {
        return Vec::new();
    }
    let mut spec = json!({
        "secretName": names::serving(&context.name),
        "dnsNames": serving_names(context, &wanted.dns_names),
        "issuerRef": wanted.issuer_ref,
        "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Always"},
        "usages": ["digital signature", "server auth"],
    });
    if !wanted.ip_addresses.is_empty() {
        spec["ipAddresses"] = json!(wanted.ip_addresses);
    }
    if let Some(duration) = &wanted.duration {
        spec["duration"] = json!(duration);
    }
    vec![object(&json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": names::owned(context.gateway, names::serving(&context.name)),
        "spec": spec,
    }))]
}

/// Secrets that the operator fills for this fleet.
fn made(context: &Context<'_>) -> impl Iterator<Item = String> {
    let serving = names::serving(&context.name);
    let is_others = context.gateway.spec.tls.self_signed.is_none();
    names::secrets(&context.name).into_iter().filter(move |secret| !(is_others && *secret == serving))
}

/// Secrets that the operator fills and may not read.
pub(super) fn unread(context: &Context<'_>) -> Vec<Problem> {
    let forbidden = &context.observed.forbidden;
    let problem = |secret: String| {
        let what = secrets::forbidden(&secret, forbidden.get(&secret)?);
        let message = format!("Secret {secret} {what}; what is in it is not renewed meanwhile");
        Some(Problem { reason: "SecretForbidden", message })
    };
    made(context).filter_map(problem).collect()
}

/// What keeps the listeners from having a certificate, where it is not the user's own.
pub(super) fn problem(context: &Context<'_>) -> Option<Problem> {
    context.gateway.spec.tls.cert_manager.as_ref()?;
    if !context.observed.apis.cert_manager {
        return Some(Problem {
            reason: "CertManagerMissing",
            message: "tls.certManager needs cert-manager (cert-manager.io/v1): install it, or use tls.selfSigned or \
                      tls.secretName"
                .to_owned(),
        });
    }
    let secret_name = names::serving(&context.name);
    let is_known = |observed: &Observed| {
        observed.secrets.contains_key(&secret_name) || observed.forbidden.contains_key(&secret_name)
    };
    if !is_known(context.observed) {
        return Some(Problem {
            reason: "CertificatePending",
            message: format!(
                "cert-manager has not filled Secret {secret_name} yet: wait, or see what Certificate {secret_name} and its \
                 issuer say"
            ),
        });
    }
    let reference = Reference { secret_name, usage: Use::Serving, path: "tls.certManager".to_owned() };
    secrets::judge(&reference, context.observed).err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::SecretFacts;

    fn day(number: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * number)
    }

    fn authority(serial: &str, from: i64) -> Certificate {
        Certificate {
            serial: serial.to_owned(),
            not_before: day(from),
            not_after: day(from) + AUTHORITY_LIFE,
            ..Certificate::default()
        }
    }

    fn check(authority: &Authority, now: i64, expected: Option<&Step>) {
        assert_eq!(authority_step(authority, day(now), "ca".to_owned()).as_ref(), expected, "day {now}");
    }

    /// 3650 days of life: two thirds are gone after 2433.3.
    #[test]
    fn a_ca_is_followed_by_another_with_overlap() {
        let secret = || "ca".to_owned();
        let mut ca = Authority { current: authority("1", 0), next: None, previous: None };
        check(&ca, 2433, None);
        check(&ca, 2434, Some(&Step::AddNextAuthority { secret: secret(), life_s: AUTHORITY_LIFE.as_secs() }));
        ca.next = Some(authority("2", 2434));
        check(&ca, 2463, None);
        check(&ca, 2464, Some(&Step::PromoteNextAuthority { secret: secret() }));
        ca = Authority { current: authority("2", 2434), next: None, previous: Some(authority("1", 0)) };
        check(&ca, 2493, None);
        check(&ca, 2494, Some(&Step::DropPreviousAuthority { secret: secret() }));
        ca.previous = None;
        check(&ca, 2494, None);
    }

    #[test]
    fn a_ca_waits_for_what_it_signed_and_may_not_be_read() {
        let leaf = Leaf {
            secret: "leaf".to_owned(),
            purpose: Purpose::Server,
            dns_names: BTreeSet::new(),
            ip_addresses: BTreeSet::new(),
            life_s: LEAF_LIFE.as_secs(),
            authority: String::new(),
            trust: Vec::new(),
        };
        let check = |now: i64, forbidden: &[&str], expected: &[&str]| {
            let mut observed = Observed {
                now: day(now),
                authority: Some(Authority { current: authority("1", 0), next: None, previous: None }),
                forbidden: forbidden.iter().map(|secret| ((*secret).to_owned(), "no".to_owned())).collect(),
                ..Observed::default()
            };
            let certificate = Certificate { not_before: day(now), not_after: day(now + 90), ..Certificate::default() };
            let facts = SecretFacts {
                certificate: Some(certificate),
                authority: Some("1".to_owned()),
                trust: vec!["1".to_owned()],
                ..SecretFacts::default()
            };
            if !forbidden.contains(&"leaf") {
                observed.secrets.insert("leaf".to_owned(), facts);
            }
            let steps = steps(&observed, vec![leaf.clone()], "ca".to_owned());
            assert_eq!(steps.iter().map(Step::name).collect::<Vec<_>>(), expected, "day {now} {forbidden:?}");
        };
        check(2434, &[], &["add next authority"]);
        check(2434, &["leaf"], &[]);
        check(2434, &["ca"], &[]);
        // its end waits for nobody
        check(3650, &["leaf"], &["add next authority"]);
    }
}
