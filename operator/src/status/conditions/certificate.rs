//! Whether the fleet serves the listeners' certificate that its Secret holds.

use crds::ProtocolGateway;
use kube::ResourceExt;

use super::{QUOTED_MAX, Verdict, verdict};
use crate::{
    names,
    observe::{Certificate, Observed, PodFacts},
};

/// True only when every pod was seen to serve what the Secret holds: those that run, ready or not, and those that cannot come
/// to run. One that is just being started counts once it runs.
pub(super) fn served(gateway: &ProtocolGateway, observed: &Observed) -> Verdict {
    let secret = gateway.spec.tls.secret_name.clone().unwrap_or_else(|| names::serving(&gateway.name_any()));
    let Some(wanted) = observed.secrets.get(&secret).and_then(|facts| facts.certificate.as_ref()) else {
        let what =
            if observed.forbidden.contains_key(&secret) { "may not be read" } else { "holds no certificate yet" };
        return verdict(None, "NoCertificate", format!("Secret {secret} {what}"));
    };
    let counted = observed.pods.iter().filter(|pod| !pod.terminating && (!pod.stopped || pod.trouble.is_some()));
    let (serve, others): (Vec<_>, Vec<_>) =
        counted.map(|pod| (stands(pod, wanted), &pod.name)).partition(|(stands, _)| *stands == Stands::Serves);
    let (count, total) = (serve.len(), serve.len() + others.len());
    let message =
        format!("{count} of {total} pods serve {} (until {}){}", wanted.serial, wanted.not_after, named(&others));
    if total == 0 {
        verdict(None, "NoPods", message)
    } else if others.is_empty() {
        verdict(true, "Served", message)
    } else if others.iter().any(|(stands, _)| *stands == Stands::ServesAnother) {
        verdict(false, "OldCertificate", message)
    } else {
        verdict(None, "NotSeen", message)
    }
}

/// How a pod stands to the certificate that it should serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stands {
    Serves,
    ServesAnother,
    NotSeen,
    Stopped,
}

/// What was seen of a pod before it stopped holds no more.
fn stands(pod: &PodFacts, wanted: &Certificate) -> Stands {
    match &pod.served {
        _ if pod.stopped => Stands::Stopped,
        Some(served) if served.serial == wanted.serial => Stands::Serves,
        Some(_) => Stands::ServesAnother,
        None => Stands::NotSeen,
    }
}

/// The first of those that do not serve it. Why one does not run changes all the time: that is for other conditions to say.
fn named(others: &[(Stands, &String)]) -> String {
    let mut others: Vec<_> = others.iter().collect();
    others.sort();
    let said = |(stands, name): &(Stands, &String)| {
        let how = match stands {
            Stands::Serves | Stands::ServesAnother => "serves another",
            Stands::NotSeen => "was not seen to serve one yet",
            Stands::Stopped => "does not run",
        };
        format!("{name} {how}")
    };
    let mut all: Vec<String> = others.iter().copied().take(QUOTED_MAX).map(said).collect();
    if others.len() > QUOTED_MAX {
        all.push(format!("and {} more", others.len() - QUOTED_MAX));
    }
    if all.is_empty() { String::new() } else { format!("; {}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::observe::SecretFacts;

    fn pod(name: &str, serial: Option<&str>) -> PodFacts {
        let served = serial.map(|serial| Certificate { serial: serial.to_owned(), ..Certificate::default() });
        PodFacts { name: name.to_owned(), served, ready: true, ..PodFacts::default() }
    }

    fn check(pods: &[PodFacts], expected: (Option<bool>, &str, &str)) {
        let gateway = json!({
            "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "gw"},
            "spec": {"upstream": {"iotHub": {"hostName": "hub.azure-devices.net"}}},
        });
        let gateway = serde_json::from_value(gateway).expect("it is one");
        let certificate = Certificate { serial: "02".to_owned(), ..Certificate::default() };
        let facts = SecretFacts { certificate: Some(certificate), ..SecretFacts::default() };
        let secrets = [("gw-tls".to_owned(), facts)].into();
        let observed = Observed { secrets, pods: pods.to_vec(), ..Observed::default() };
        let found = served(&gateway, &observed);
        let message = found.message.replace(&format!(" (until {})", Timestamp::UNIX_EPOCH), "");
        assert_eq!((found.holds, found.reason.as_str(), message.as_str()), expected, "{pods:#?}");
    }

    #[test]
    fn it_is_served_when_every_pod_that_runs_serves_it() {
        let (new, old, unseen) = (|name| pod(name, Some("02")), |name| pod(name, Some("01")), |name| pod(name, None));
        check(&[], (None, "NoPods", "0 of 0 pods serve 02"));
        check(&[new("a"), new("b")], (Some(true), "Served", "2 of 2 pods serve 02"));
        check(&[new("a"), old("b")], (Some(false), "OldCertificate", "1 of 2 pods serve 02; b serves another"));
        check(&[new("a"), unseen("b")], (None, "NotSeen", "1 of 2 pods serve 02; b was not seen to serve one yet"));
        check(
            &[unseen("c"), old("b"), new("a")],
            (Some(false), "OldCertificate", "1 of 3 pods serve 02; b serves another, c was not seen to serve one yet"),
        );
        let unready = |pod| PodFacts { ready: false, ..pod };
        check(
            &[new("a"), unready(old("b"))],
            (Some(false), "OldCertificate", "1 of 2 pods serve 02; b serves another"),
        );
        check(&[new("a"), unready(new("b"))], (Some(true), "Served", "2 of 2 pods serve 02"));
        let goes = PodFacts { terminating: true, ..old("b") };
        check(&[new("a"), goes], (Some(true), "Served", "1 of 1 pods serve 02"));
    }

    #[test]
    fn who_cannot_come_to_run_is_named_and_who_is_just_started_is_not_missed() {
        let new = |name| pod(name, Some("02"));
        let stopped = |name: &str, trouble: Option<&str>| PodFacts {
            stopped: true,
            ready: false,
            trouble: trouble.map(str::to_owned),
            ..pod(name, None)
        };
        check(&[new("a"), stopped("b", None)], (Some(true), "Served", "1 of 1 pods serve 02"));
        check(
            &[new("a"), stopped("b", Some("ImagePullBackOff: no such image"))],
            (None, "NotSeen", "1 of 2 pods serve 02; b does not run"),
        );
        let crashed = PodFacts { served: new("b").served, ..stopped("b", Some("CrashLoopBackOff")) };
        check(&[new("a"), crashed], (None, "NotSeen", "1 of 2 pods serve 02; b does not run"));
        let stuck = ["b", "c", "d", "e", "f"].map(|name| stopped(name, Some("Unschedulable: 0/2 nodes")));
        let named = "0 of 5 pods serve 02; b does not run, c does not run, d does not run, and 2 more";
        check(&stuck, (None, "NotSeen", named));
    }
}
