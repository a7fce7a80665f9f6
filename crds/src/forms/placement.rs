//! Where pods run: tolerations, spread and affinity, whose parts stand in many places.

use super::{
    Field, Form,
    table::{form, label_value, number, one_of, rule, text},
};

/// Bounds of lists. The API server reckons what all rules cost if every list is full, and refuses a definition above a bound of
/// its own: these leave room.
const TERMS_MAX: u64 = 8;
const EXPRESSIONS_MAX: u64 = 8;
const VALUES_MAX: u64 = 16;
const KEYS_MAX: u64 = 8;

/// Beginnings of paths below the spec, and what stands there. The paths of the fields go on from them.
pub(super) fn places() -> Vec<(String, &'static [Field])> {
    let affinity = |kind: &str| format!("pod.affinity.{kind}");
    let mut places = vec![
        ("pod.tolerations".to_owned(), TOLERATIONS),
        ("pod.topologySpreadConstraints".to_owned(), SPREAD),
        ("pod.topologySpreadConstraints[].labelSelector".to_owned(), SELECTOR),
    ];
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    places.push((affinity(&format!("nodeAffinity.{required}.nodeSelectorTerms")), NODE_TERMS));
    places.push((affinity(&format!("nodeAffinity.{required}.nodeSelectorTerms[]")), NODE_TERM));
    places.push((affinity(&format!("nodeAffinity.{preferred}")), PREFERENCES));
    places.push((affinity(&format!("nodeAffinity.{preferred}[].preference")), NODE_TERM));
    for kind in ["podAffinity", "podAntiAffinity"] {
        places.push((affinity(&format!("{kind}.{required}")), TERMS));
        places.push((affinity(&format!("{kind}.{preferred}")), PREFERENCES));
        for term in [format!("{required}[]"), format!("{preferred}[].podAffinityTerm")] {
            places.push((affinity(&format!("{kind}.{term}")), POD_TERM));
            for selector in ["labelSelector", "namespaceSelector"] {
                places.push((affinity(&format!("{kind}.{term}.{selector}")), SELECTOR));
            }
        }
    }
    places
}

const TOLERATIONS: &[Field] = &[
    form("", Form::List(0, 64)),
    rule(
        "",
        "self.all(t, has(t.operator) && t.operator == 'Exists' ? (!has(t.value) || t.value == '') : (has(t.key) && t.key != \
         ''))",
        "a toleration has a key, and a value if its operator is Equal; with operator Exists leave the value out, and the key \
         out for all taints",
    ),
    rule(
        "",
        "self.all(t, !has(t.tolerationSeconds) || (has(t.effect) && t.effect == 'NoExecute'))",
        "tolerationSeconds is for effect NoExecute: write that effect, or leave the seconds out",
    ),
    form("[].key", Form::LabelKey(0)),
    one_of("[].operator", "self in ['', 'Exists', 'Equal']", "write Exists or Equal"),
    label_value("[].value"),
    one_of(
        "[].effect",
        "self in ['', 'NoSchedule', 'PreferNoSchedule', 'NoExecute']",
        "write NoSchedule, PreferNoSchedule or NoExecute; leave it out for all of them",
    ),
    number("[].tolerationSeconds", 0, 31_536_000, ""),
];

const SPREAD: &[Field] = &[
    form("", Form::List(0, 16)),
    rule(
        "",
        "self.all(a, self.exists_one(b, a.topologyKey == b.topologyKey && a.whenUnsatisfiable == b.whenUnsatisfiable))",
        "keep one constraint for each topologyKey and whenUnsatisfiable",
    ),
    rule(
        "[]",
        "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
        "minDomains is for DoNotSchedule: write that, or leave minDomains out",
    ),
    rule(
        "[]",
        "!has(self.matchLabelKeys) || self.matchLabelKeys.all(key, has(self.labelSelector) ? \
         !(has(self.labelSelector.matchLabels) && key in self.labelSelector.matchLabels) && \
         !(has(self.labelSelector.matchExpressions) && self.labelSelector.matchExpressions.exists(e, e.key == key)) : \
         !(key in ['app.kubernetes.io/name', 'app.kubernetes.io/instance']))",
        "a key of matchLabelKeys is not one of labelSelector (where it is left out: app.kubernetes.io/name and \
         app.kubernetes.io/instance): name it once",
    ),
    number("[].maxSkew", 1, 10_000, ""),
    number("[].minDomains", 1, 10_000, ""),
    form("[].topologyKey", Form::LabelKey(1)),
    one_of(
        "[].whenUnsatisfiable",
        "self in ['DoNotSchedule', 'ScheduleAnyway']",
        "write DoNotSchedule or ScheduleAnyway",
    ),
    form("[].matchLabelKeys", Form::List(0, KEYS_MAX)),
    form("[].matchLabelKeys[]", Form::LabelKey(1)),
    form("[].nodeAffinityPolicy", HONOR),
    form("[].nodeTaintsPolicy", HONOR),
];

const HONOR: Form = Form::Choice(&["Honor", "Ignore"]);

/// Of labels of pods or namespaces.
const SELECTOR: &[Field] = &[
    form(".matchLabels", Form::Labels(KEYS_MAX)),
    label_value(".matchLabels{}"),
    form(".matchExpressions", Form::List(0, EXPRESSIONS_MAX)),
    rule(
        ".matchExpressions[]",
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
        "give operators In and NotIn values, and leave values out for Exists and DoesNotExist",
    ),
    form(".matchExpressions[].key", Form::LabelKey(1)),
    form(".matchExpressions[].operator", Form::Choice(&["In", "NotIn", "Exists", "DoesNotExist"])),
    form(".matchExpressions[].values", Form::List(0, VALUES_MAX)),
    label_value(".matchExpressions[].values[]"),
];

const NODE_TERMS: &[Field] = &[
    form("", Form::List(1, TERMS_MAX)),
    rule(
        "[]",
        "(has(self.matchExpressions) && self.matchExpressions.size() > 0) || (has(self.matchFields) && \
         self.matchFields.size() > 0)",
        "a term that says nothing is of no node: give it matchExpressions or matchFields, or leave it out",
    ),
];

/// Which nodes.
const NODE_TERM: &[Field] = &[
    form(".matchExpressions", Form::List(0, EXPRESSIONS_MAX)),
    rule(
        ".matchExpressions[]",
        "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || self.values.size() == 0 : has(self.values) && \
         (self.operator in ['Gt', 'Lt'] ? self.values.size() == 1 && self.values[0].matches('^[0-9]{1,18}$') : \
         self.values.size() > 0)",
        "give operators In and NotIn values, Gt and Lt one whole number of at least 0, and leave values out for Exists and DoesNotExist",
    ),
    form(".matchExpressions[].key", Form::LabelKey(1)),
    form(".matchExpressions[].operator", Form::Choice(&["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"])),
    form(".matchExpressions[].values", Form::List(0, VALUES_MAX)),
    label_value(".matchExpressions[].values[]"),
    form(".matchFields", Form::List(0, 4)),
    rule(".matchFields[]", "has(self.values) && self.values.size() == 1", "name one node, as in values: [node-1]"),
    form(".matchFields[].key", Form::Choice(&["metadata.name"])),
    form(".matchFields[].operator", Form::Choice(&["In", "NotIn"])),
    form(".matchFields[].values", Form::List(0, 1)),
    text(
        ".matchFields[].values[]",
        (1, 253),
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "give the name of a node: lower-case letters, digits, '-' and '.'",
    ),
];

const TERMS: &[Field] = &[form("", Form::List(0, TERMS_MAX))];

const PREFERENCES: &[Field] = &[form("", Form::List(0, TERMS_MAX)), number("[].weight", 1, 100, "")];

/// Beside which pods.
const POD_TERM: &[Field] = &[
    rule(
        "",
        "!(has(self.matchLabelKeys) || has(self.mismatchLabelKeys)) || has(self.labelSelector)",
        "matchLabelKeys and mismatchLabelKeys go with a labelSelector: give one",
    ),
    rule(
        "",
        "!(has(self.matchLabelKeys) && has(self.mismatchLabelKeys)) || self.matchLabelKeys.all(key, !(key in \
         self.mismatchLabelKeys))",
        "a key matches or it does not: keep it in one of matchLabelKeys and mismatchLabelKeys",
    ),
    form(".topologyKey", Form::LabelKey(1)),
    form(".matchLabelKeys", Form::List(0, KEYS_MAX)),
    form(".matchLabelKeys[]", Form::LabelKey(1)),
    form(".mismatchLabelKeys", Form::List(0, KEYS_MAX)),
    form(".mismatchLabelKeys[]", Form::LabelKey(1)),
    form(".namespaces", Form::List(0, 64)),
    text(
        ".namespaces[]",
        (1, 63),
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "give the name of a namespace: lower-case letters, digits and '-'",
    ),
];
