//! How many pods there would be, and how long drains, rollouts and losses would take within the budget.

use crate::{
    autoscale::{self, Bounds},
    budget::seconds_for,
    drains::FOLLOWS,
    model::Millis,
    view::SETTLE,
};

/// From a pod made to a pod ready, on a node that has the image.
const START_S: i64 = 5;
/// From a pod told to leave to load balancers having heard of it: two probes, and the time that they need.
const LEAVE_S: i64 = 10 + SETTLE / 1000;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Pods that there are; `None`: as many as are needed.
    pub pods: Option<u32>,
    /// Devices connected.
    pub connections: u64,
    /// Devices that may be let go per second.
    pub per_second: u32,
    /// How long one pod may take to drain.
    pub drain_timeout: Millis,
    /// Devices that one pod takes per second.
    pub connects_per_second: u32,
    /// Devices that one pod takes at all.
    pub connections_max: u64,
    /// Seconds that a new pod must be ready before the next one is replaced.
    pub min_ready_s: i64,
    /// Autoscaling, if there is any.
    pub scaling: Option<Bounds>,
    /// Pods wanted where there is no autoscaling.
    pub replicas: u32,
    /// Nodes that pods are spread over; `None`: one for each pod.
    pub nodes: Option<u32>,
}

/// The answer. Times are seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Pods that so many connections need.
    pub pods_needed: u32,
    /// Pods that the rest is about.
    pub pods: u32,
    /// Devices on the fullest pod, if they are spread evenly.
    pub connections_per_pod: u64,
    /// One pod is emptied.
    pub drain_s: i64,
    /// All pods are replaced.
    pub rollout_s: i64,
    /// Pods that go with a node.
    pub pods_per_node: u32,
    /// A node is emptied in order (`kubectl drain`).
    pub node_drain_s: i64,
    /// Devices that a node takes with it when it is lost; the budget cannot hold them.
    pub node_loss_devices: u64,
    /// Until all of them are connected again, at the pace at which the other pods take them.
    pub node_loss_s: i64,
    /// What does not fit, and what to do.
    pub problems: Vec<String>,
}

/// Answers.
pub fn outlook(question: &Question) -> Outlook {
    let pods_needed = needed(question);
    let pods = question.pods.unwrap_or(pods_needed);
    let per_pod = question.connections.div_ceil(u64::from(pods.max(1)));
    let nodes = question.nodes.unwrap_or(pods).clamp(1, pods.max(1));
    let pods_per_node = pods.div_ceil(nodes);
    let lost = per_pod.saturating_mul(u64::from(pods_per_node)).min(question.connections);
    let takers = pods.saturating_sub(pods_per_node);
    // without another pod the node's own come back first
    let wait_s = if takers == 0 { START_S + question.min_ready_s } else { 0 };
    let pace = question.connects_per_second.saturating_mul(takers.max(1));
    let replace_s = i64::from(pods) * (START_S + question.min_ready_s);
    let mut outlook = Outlook {
        pods_needed,
        pods,
        connections_per_pod: per_pod,
        drain_s: LEAVE_S + seconds_for(per_pod, question.per_second),
        rollout_s: replace_s + seconds_for(question.connections, question.per_second),
        pods_per_node,
        // one pod may be missing at a time, so each waits until the one before it is replaced
        node_drain_s: i64::from(pods_per_node) * (START_S + question.min_ready_s)
            + seconds_for(lost, question.per_second),
        node_loss_devices: lost,
        node_loss_s: wait_s + seconds_for(lost, pace),
        problems: Vec::new(),
    };
    outlook.problems = problems(question, &outlook, replace_s);
    outlook
}

fn needed(question: &Question) -> u32 {
    match question.scaling {
        Some(bounds) => autoscale::pods_for(question.connections, bounds.target).clamp(bounds.min, bounds.max),
        None => question.replicas,
    }
}

fn problems(question: &Question, outlook: &Outlook, replace_s: i64) -> Vec<String> {
    let mut problems = Vec::new();
    // it may be told to stop before it is empty
    let time = Time::Ending(question.drain_timeout / 1000);
    if question.per_second == 0 {
        problems.push("reconnects.perSecond is 0: no pod can be drained".to_owned());
        return problems;
    }
    if let Some(problem) = too_slow("one pod", outlook.connections_per_pod, question.per_second, time, 0) {
        problems.push(problem);
    } else if let Some(problem) = too_slow("a rollout", question.connections, question.per_second, time, replace_s) {
        problems.push(format!("{problem}; until then some devices are moved twice"));
    }
    if let Some(bounds) = question.scaling
        && autoscale::pods_for(question.connections, bounds.target) > bounds.max
    {
        problems.push(format!(
            "{} connections need {} pods at {} each, scaling.maxReplicas is {}",
            question.connections,
            autoscale::pods_for(question.connections, bounds.target),
            bounds.target,
            bounds.max
        ));
    }
    if outlook.connections_per_pod > question.connections_max {
        problems.push(format!(
            "{} connections on each pod are more than limits.connectionsMax ({})",
            outlook.connections_per_pod, question.connections_max
        ));
    }
    let left = outlook.pods.saturating_sub(outlook.pods_per_node);
    let room = question.connections_max.saturating_mul(u64::from(left));
    if left == 0 && question.connections > 0 {
        problems.push("when its node is lost, no pod is left: run more pods, on more nodes".to_owned());
    } else if question.connections > room {
        problems.push(format!(
            "when a node is lost, the other {left} pods take {room} of {} connections",
            question.connections
        ));
    }
    problems
}

/// What there is of `reconnects.drainTimeout`, in seconds.
#[derive(Clone, Copy)]
pub(crate) enum Time {
    /// All of it: for a pod that is not told to stop before it is empty.
    All(i64),
    /// What a pod that was told to stop follows orders for.
    Ending(i64),
}

impl Time {
    fn seconds(self) -> i64 {
        match self {
            Self::All(timeout_s) => timeout_s,
            Self::Ending(timeout_s) => timeout_s * FOLLOWS.0 / FOLLOWS.1,
        }
    }

    /// The time-out that is enough for so many seconds.
    fn enough_for(self, seconds: i64) -> i64 {
        match self {
            Self::All(_) => seconds,
            Self::Ending(_) => (seconds * FOLLOWS.1 + FOLLOWS.0 - 1) / FOLLOWS.0,
        }
    }

    fn said(self) -> String {
        match self {
            Self::All(timeout_s) => format!("reconnects.drainTimeout is {timeout_s} s"),
            Self::Ending(_) => format!("three quarters of reconnects.drainTimeout are {} s", self.seconds()),
        }
    }
}

/// The arithmetic of a drain that does not fit its time, and what to do about it.
pub(crate) fn too_slow(what: &str, devices: u64, per_second: u32, time: Time, wait_s: i64) -> Option<String> {
    let needs_s = wait_s + seconds_for(devices, per_second);
    if needs_s <= time.seconds() || per_second == 0 {
        return None;
    }
    let waits = if wait_s > 0 { format!("{wait_s} s and ") } else { String::new() };
    let room_s = time.seconds() - wait_s;
    let rate = if room_s > 0 {
        let rate = devices.div_ceil(u64::try_from(room_s).unwrap_or(1));
        format!("reconnects.perSecond to {rate} or ")
    } else {
        String::new()
    };
    Some(format!(
        "{what} with {devices} devices needs {waits}{} s at {per_second}/s, {}: raise {rate}drainTimeout to {}s",
        needs_s - wait_s,
        time.said(),
        time.enough_for(needs_s)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            pods: None,
            connections: 50_000,
            per_second: 100,
            drain_timeout: 600_000,
            connects_per_second: 500,
            connections_max: 18_000,
            min_ready_s: 10,
            scaling: Some(Bounds { min: 2, max: 40, target: 5000, scale_down_after: 900_000 }),
            replicas: 2,
            nodes: None,
        }
    }

    #[test]
    fn ten_pods_of_five_thousand_devices() {
        let outlook = outlook(&question());
        assert_eq!((outlook.pods_needed, outlook.connections_per_pod), (10, 5000));
        assert_eq!((outlook.drain_s, outlook.rollout_s), (15 + 50, 150 + 500));
        assert_eq!((outlook.node_loss_devices, outlook.node_loss_s, outlook.node_drain_s), (5000, 2, 65));
        let problem = "a rollout with 50000 devices needs 150 s and 500 s at 100/s, three quarters of \
                       reconnects.drainTimeout are 450 s: raise reconnects.perSecond to 167 or drainTimeout to 867s; until then some devices are moved twice";
        assert_eq!(outlook.problems, [problem]);
    }

    #[test]
    fn a_pod_that_cannot_be_drained_in_time_is_said_with_the_arithmetic() {
        let outlook = outlook(&Question { pods: Some(1), connections: 12_000, per_second: 10, ..question() });
        let drain = "one pod with 12000 devices needs 1200 s at 10/s, three quarters of reconnects.drainTimeout are 450 s: \
                     raise reconnects.perSecond to 27 or drainTimeout to 1600s";
        let lost = "when its node is lost, no pod is left: run more pods, on more nodes";
        assert_eq!(outlook.problems, [drain, lost]);
    }

    #[test]
    fn a_time_that_is_enough_but_for_its_last_quarter_is_said_too() {
        let question = Question {
            pods: Some(8),
            connections: 8 * 4050,
            per_second: 10,
            drain_timeout: 3_600_000,
            min_ready_s: 0,
            scaling: None,
            ..question()
        };
        let problem = "a rollout with 32400 devices needs 40 s and 3240 s at 10/s, three quarters of reconnects.drainTimeout are \
                       2700 s: raise reconnects.perSecond to 13 or drainTimeout to 4374s; until then some devices are moved twice";
        assert_eq!(outlook(&question).problems, [problem]);
        assert!(outlook(&Question { drain_timeout: 4_374_000, ..question }).problems.is_empty());
    }

    #[test]
    fn more_connections_than_pods_may_be_made_for() {
        let outlook = outlook(&Question { connections: 900_000, drain_timeout: 86_400_000, ..question() });
        assert_eq!(outlook.pods, 40);
        let problems = [
            "900000 connections need 180 pods at 5000 each, scaling.maxReplicas is 40",
            "22500 connections on each pod are more than limits.connectionsMax (18000)",
            "when a node is lost, the other 39 pods take 702000 of 900000 connections",
        ];
        assert_eq!(outlook.problems, problems);
    }

    #[test]
    fn nobody_and_nothing_takes_no_time() {
        let outlook = outlook(&Question { pods: Some(0), connections: 0, ..question() });
        assert_eq!((outlook.connections_per_pod, outlook.node_loss_devices, outlook.problems), (0, 0, vec![]));
    }

    #[test]
    fn pods_that_share_nodes_go_together() {
        let outlook = outlook(&Question { nodes: Some(3), ..question() });
        assert_eq!((outlook.pods_per_node, outlook.node_loss_devices, outlook.node_loss_s), (4, 20_000, 7));
        assert_eq!(outlook.node_drain_s, 4 * 15 + 200);
    }

    #[test]
    fn a_node_is_drained_pod_by_pod() {
        let check = |pods, nodes, expected| {
            let outlook = outlook(&Question { pods: Some(pods), nodes, connections: 1000, ..question() });
            assert_eq!(outlook.node_drain_s, expected, "{pods} pods on {nodes:?} nodes");
        };
        check(4, None, 15 + 3);
        check(4, Some(4), 15 + 3);
        check(4, Some(2), 2 * 15 + 5);
        check(5, Some(2), 3 * 15 + 6);
        check(4, Some(1), 4 * 15 + 10);
    }
}
