//! Whether pods follow the configuration that the ConfigMap holds: those that could be asked and are of the newest template.

use jiff::{SignedDuration, Timestamp};

use super::{QUOTED_MAX, Verdict, verdict};
use crate::{
    desired,
    observe::{Observed, PodFacts},
    scaling,
};

/// Kubelets bring a change to their pods in one to two minutes, and a pod looks every few seconds.
const FOLLOWED_WITHIN: SignedDuration = SignedDuration::from_mins(3);

/// Pods that say which configuration they follow.
struct Following<'a> {
    /// How many could be asked.
    asked: usize,
    /// How many follow what is written.
    follow: usize,
    /// Those that follow another and say nothing against this one, with the time by which they should.
    behind: Vec<(&'a PodFacts, Timestamp)>,
}

fn following(observed: &Observed) -> Option<Following<'_>> {
    let written_at = observed.config_written?;
    let written = desired::config_hash(observed.config_in_force.as_deref()?);
    let is_newest = newest(observed)?;
    let mut following = Following { asked: 0, follow: 0, behind: Vec::new() };
    let pods = observed.pods.iter().filter(|pod| !pod.terminating && pod.silent.is_none());
    for pod in pods.filter(|pod| is_newest(pod)) {
        let Some(load) = &pod.load else { continue };
        let Some(in_force) = &load.config_in_force else { continue };
        following.asked += 1;
        if *in_force == written {
            following.follow += 1;
        } else if load.config_problem.is_none() {
            // it began with what its node knew then
            let since = pod.created.map_or(written_at, |created| created.max(written_at));
            following.behind.push((pod, since + FOLLOWED_WITHIN));
        }
    }
    following.behind.sort_by_key(|(pod, _)| &pod.name);
    Some(following)
}

/// Which pods are looked at: while pods are replaced, those of the newest template. `None` where that is not known.
fn newest(observed: &Observed) -> Option<impl Fn(&PodFacts) -> bool> {
    let deployment = observed.deployment.as_ref()?;
    let is_known = deployment.status.updated_replicas.unwrap_or(0) > 0 && !super::is_behind(deployment);
    let template = match (super::is_rolling(deployment), is_known) {
        (false, _) => None,
        (true, true) => Some(scaling::current_template(observed)?),
        (true, false) => return None,
    };
    Some(move |pod: &PodFacts| template.is_none_or(|template| pod.template == template))
}

/// When it is to be said that pods do not follow, if they go on so.
pub(super) fn due(observed: &Observed) -> Option<Timestamp> {
    let times = following(observed)?.behind.into_iter().map(|(_, by)| by);
    times.filter(|by| *by > observed.now).min()
}

/// That a change is on its way to pods.
pub(super) fn spreading(observed: &Observed) -> Option<Verdict> {
    let Following { asked, follow, behind } = following(observed)?;
    behind.iter().any(|(_, by)| *by > observed.now).then(|| {
        let message = format!(
            "{follow} of {asked} pods follow the newest configuration: it reaches a pod up to two minutes after it is written"
        );
        verdict(true, "ConfigurationSpreading", message)
    })
}

/// Pods to which it should have come.
pub(super) fn not_reached(observed: &Observed) -> Option<String> {
    let late: Vec<&PodFacts> =
        following(observed)?.behind.into_iter().filter(|(_, by)| *by <= observed.now).map(|(pod, _)| pod).collect();
    let quoted = late.iter().take(QUOTED_MAX).map(|pod| match &pod.node {
        Some(node) => format!("{} on node {node}", pod.name),
        None => pod.name.clone(),
    });
    let quoted = quoted.collect::<Vec<_>>().join(", ");
    let more = if late.len() > QUOTED_MAX { format!(" and {} more", late.len() - QUOTED_MAX) } else { String::new() };
    (!late.is_empty()).then(|| {
        format!(
            "pods still follow an older configuration, more than {} minutes after another was written: {quoted}{more}; their \
             node's kubelet does not bring it to them: see that it works, or delete the pods: they are emptied in pace, and what \
             replaces them begins with the newest",
            FOLLOWED_WITHIN.as_mins()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{DeploymentFacts, Load};

    fn second(number: i64) -> Timestamp {
        Timestamp::from_second(number).expect("it is a time")
    }

    fn pod(name: &str, in_force: &str, created: i64) -> PodFacts {
        let load = Load { config_in_force: Some(in_force.to_owned()), ..Load::default() };
        PodFacts { name: name.to_owned(), created: Some(second(created)), load: Some(load), ..PodFacts::default() }
    }

    /// When it is looked at again, whether it is on its way, and who is named as not having it.
    fn check(now: i64, pods: &[PodFacts], expected: (Option<i64>, bool, &[&str])) {
        let observed = Observed {
            now: second(now),
            config_in_force: Some("listeners: []".to_owned()),
            config_written: Some(second(1000)),
            deployment: Some(DeploymentFacts::default()),
            pods: pods.to_vec(),
            ..Observed::default()
        };
        let late = not_reached(&observed).unwrap_or_default();
        let named: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).filter(|name| late.contains(name)).collect();
        let found = (due(&observed).map(Timestamp::as_second), spreading(&observed).is_some(), named.as_slice());
        assert_eq!(found, expected, "after {now} s: {late}");
    }

    #[test]
    fn a_pod_has_three_minutes_from_the_write_or_from_its_own_beginning() {
        let follows = pod("gw-0", &desired::config_hash("listeners: []"), 0);
        let (behind, younger) = (pod("gw-1", "00", 0), pod("gw-2", "00", 1100));
        check(1001, &[], (None, false, &[]));
        check(9999, std::slice::from_ref(&follows), (None, false, &[]));
        let pods = [follows, behind, younger];
        check(1001, &pods, (Some(1180), true, &[]));
        check(1179, &pods, (Some(1180), true, &[]));
        check(1180, &pods, (Some(1280), true, &["gw-1"]));
        check(1280, &pods, (None, false, &["gw-1", "gw-2"]));
    }
}
