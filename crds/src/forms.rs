//! What single fields must look like: form, range and default, in one table.
//!
//! Numbers, lengths and sizes of lists become schema; what needs words becomes a CEL rule with a message. The ranges of the
//! gateway half are those of `GatewayConfig::check`: a test walks this table and compares.

mod placement;
mod table;

use serde_json::{Map, Value, json};

use self::table::FIELDS;
use crate::rules;

/// One row: `path` below the spec (`[]` any element, `{}` any value of a map), and what stands there.
pub(crate) struct Field {
    pub(crate) path: &'static str,
    pub(crate) form: Form,
    /// What holds where the field is absent; for the description. Empty: said there already.
    pub(crate) default: &'static str,
}

/// What may stand in a field. Bounds include their ends.
pub(crate) enum Form {
    /// Whole number.
    Number(i64, i64),
    /// Number with a fraction.
    Fraction(f64, f64),
    /// Time, as `10s`.
    Time(&'static str, &'static str),
    /// Size, as `256KiB`, or bytes.
    Size(&'static str, &'static str),
    /// Text of so many characters that a CEL expression finds right.
    Text { length: (u64, u64), cel: &'static str, message: &'static str },
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// Key of a label, of at least so many characters.
    LabelKey(u64),
    /// Whatever it is, a CEL expression finds it right; another row says its form.
    Rule { cel: &'static str, message: &'static str },
    /// List of so many elements.
    List(u64, u64),
    /// List of so many elements, told apart by this field.
    Keyed(u64, u64, &'static str),
    /// List of so many different texts.
    Set(u64, u64),
    /// Map of at most so many entries.
    Map(u64),
    /// Labels, at most so many.
    Labels(u64),
    /// Quantity of Kubernetes, as `500m` or `1Gi`.
    KubernetesQuantity,
}

/// CEL: `expression` has the form of a time. Ranges are another matter.
pub(crate) fn is_time(expression: &str) -> String {
    format!("{expression}.matches('^([0-9]{{1,6}}(ms|s|m|h))+$')")
}

/// CEL: `expression` has the form of a size. Short, because the API server reckons what an expression costs by its length.
pub(crate) fn is_size(expression: &str) -> String {
    format!("string({expression}).matches('^[0-9]{{1,9}}([kMG]?B|[KMG]iB)?$')")
}

/// CEL: how many bytes the size `expression` says, if [`is_size`].
pub(crate) fn bytes(expression: &str) -> String {
    format!(
        "int(string({expression}).find('^[0-9]+')) * {{'': 1, 'B': 1, 'kB': 1000, 'MB': 1000000, 'GB': 1000000000, 'KiB': 1024, \
         'MiB': 1048576, 'GiB': 1073741824}}[string({expression}).find('[^0-9]*$')]"
    )
}

/// Writes the table into the schema of the spec.
///
/// # Panics
/// If a path of the table is not in the schema.
pub(crate) fn apply(spec: &mut Value) {
    for field in FIELDS {
        set(spec, field.path, field);
    }
    for (place, fields) in placement::places() {
        for field in fields {
            set(spec, &format!("{place}{}", field.path), field);
        }
    }
}

fn set(spec: &mut Value, path: &str, field: &Field) {
    write(at(spec, path).unwrap_or_else(|| panic!("{path} is in the schema")), field);
}

fn at<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut node = schema;
    for name in path.split('.') {
        let (name, inner) = match (name.strip_suffix("[]"), name.strip_suffix("{}")) {
            (Some(name), _) => (name, Some("items")),
            (_, Some(name)) => (name, Some("additionalProperties")),
            _ => (name, None),
        };
        node = node.get_mut("properties")?.get_mut(name)?;
        if let Some(inner) = inner {
            node = node.get_mut(inner)?;
        }
    }
    node.as_object_mut()
}

fn write(node: &mut Map<String, Value>, field: &Field) {
    let mut set = |key: &str, value: Value| {
        node.insert(key.to_owned(), value);
    };
    let range = match &field.form {
        Form::Number(min, max) => {
            set("minimum", json!(min));
            set("maximum", json!(max));
            format!("{min} to {max}")
        }
        Form::Fraction(min, max) => {
            set("minimum", json!(min));
            set("maximum", json!(max));
            format!("{min} to {max}")
        }
        Form::Time(min, max) => {
            set("maxLength", json!(20));
            let form = is_time("self");
            let rule = format!("{form} && duration(self) >= duration('{min}') && duration(self) <= duration('{max}')");
            add_rule(node, &rule, &format!("give a time from {min} to {max}, written as in 250ms, 10s, 15m or 1h30m"));
            format!("{min} to {max}")
        }
        Form::Size(min, max) => {
            size_schema(node, min, max);
            format!("{min} to {max}")
        }
        Form::Text { length: (min, max), cel, message } => {
            set("minLength", json!(min));
            set("maxLength", json!(max));
            if !cel.is_empty() {
                add_rule(node, cel, message);
            }
            String::new()
        }
        Form::Choice(values) => {
            set("enum", json!(values));
            String::new()
        }
        Form::LabelKey(min) => {
            set("minLength", json!(min));
            set("maxLength", json!(317));
            let empty = if *min == 0 { "self == '' || " } else { "" };
            add_rule(node, &format!("{empty}self.matches('{}')", rules::LABEL_KEY), rules::LABEL_KEY_MESSAGE);
            String::new()
        }
        Form::Rule { cel, message } => {
            add_rule(node, cel, message);
            String::new()
        }
        Form::List(min, max) => {
            list(node, *min, *max);
            String::new()
        }
        Form::Keyed(min, max, key) => {
            list(node, *min, *max);
            node.insert("x-kubernetes-list-type".to_owned(), json!("map"));
            node.insert("x-kubernetes-list-map-keys".to_owned(), json!([key]));
            String::new()
        }
        Form::Set(min, max) => {
            list(node, *min, *max);
            node.insert("x-kubernetes-list-type".to_owned(), json!("set"));
            String::new()
        }
        Form::Map(max) => {
            set("maxProperties", json!(max));
            String::new()
        }
        Form::Labels(max) => {
            set("maxProperties", json!(max));
            add_rule(node, &rules::label_keys(), rules::LABEL_KEY_MESSAGE);
            String::new()
        }
        Form::KubernetesQuantity => {
            let rule = "isQuantity(string(self)) && !string(self).startsWith('-')";
            add_rule(node, rule, "write a quantity of at least 0, as in 500m, 2, 256Mi or 1Gi");
            String::new()
        }
    };
    describe(node, &range, field.default);
}

fn list(node: &mut Map<String, Value>, min: u64, max: u64) {
    if min > 0 {
        node.insert("minItems".to_owned(), json!(min));
    }
    node.insert("maxItems".to_owned(), json!(max));
}

/// A size may be a number in the file, so it may be one here.
fn size_schema(node: &mut Map<String, Value>, min: &str, max: &str) {
    node.remove("type");
    node.insert("x-kubernetes-int-or-string".to_owned(), json!(true));
    let (form, size) = (is_size("self"), bytes("self"));
    let [from, to] = [min, max].map(in_bytes);
    // reckoned once: the API server counts what a rule may cost, and a size may be a text of any length to it
    let rule = format!("{form} && [{size}].all(bytes, bytes >= {from} && bytes <= {to})");
    add_rule(node, &rule, &format!("give a size from {min} to {max}, written as in 262144, 256KiB or 1MiB"));
}

fn in_bytes(size: &str) -> u64 {
    gateway_core::config::Quantity(size.to_owned()).bytes().expect("bounds of the table are sizes")
}

fn add_rule(node: &mut Map<String, Value>, rule: &str, message: &str) {
    let rules = node.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    rules.as_array_mut().expect("rules are a list").push(json!({"rule": rule, "message": message}));
}

/// What the types say to those who write a file.
const FILE_ONLY: [&str; 2] = [" 0 lets the system choose.", ", and of the directory"];

/// `kubectl explain` shows descriptions and no bounds: they are said there, too.
fn describe(node: &mut Map<String, Value>, range: &str, default: &str) {
    let Some(Value::String(description)) = node.get_mut("description") else { return };
    for words in FILE_ONLY {
        *description = description.replace(words, "");
    }
    if !range.is_empty() {
        description.extend([" From ", range, "."]);
    }
    if !default.is_empty() {
        description.extend([" Default: ", default, "."]);
    }
}

#[cfg(test)]
mod tests {
    use gateway_core::{
        config::{Admin, ConfigError},
        settings::Settings,
    };

    use super::*;
    use crate::ProtocolGatewaySpec;

    /// Where this table says more than a gateway does: a cluster needs to know ports, and packets are bounded by messages.
    const MORE: [&str; 4] = ["listeners[].port", "admin.port", "admin.healthPort", "limits.packetBytesMax"];

    fn gateway_half() -> impl Iterator<Item = &'static Field> {
        let half = ["authentication", "upstream", "topics", "limits", "admin"];
        FIELDS
            .iter()
            .filter(move |field| half.iter().any(|name| field.path.starts_with(name)) && !MORE.contains(&field.path))
    }

    /// A spec with this one field set, as the gateway sees it.
    fn settings_with(path: &str, value: Option<Value>) -> Result<Settings, Vec<ConfigError>> {
        let hub = json!({"upstream": {"iotHub": {"hostName": "contoso.azure-devices.net"}}});
        let broker = json!({
            "authentication": {"sas": {"verify": "Local", "deviceKeys": {"secretName": "keys"}}},
            "upstream": {"amqp": {"url": "amqps://a", "telemetryAddress": "t/{deviceId}"}},
        });
        // a hub's bound of a message is a rule of its own
        let mut spec = if path.contains(".amqp.") || path == "limits.messageBytesMax" { broker } else { hub };
        if let Some(value) = value {
            *path.split('.').fold(&mut spec, |node, name| &mut node[name]) = value;
        }
        let spec: ProtocolGatewaySpec = serde_json::from_value(spec).expect("it is of the form");
        spec.gateway_config(Some("tls".to_owned()), Admin::default()).check()
    }

    /// `value` is out of this field's range, or it is not, whatever it is to other fields.
    fn check_range(path: &str, value: &Value, fits: bool) {
        let errors = settings_with(path, Some(value.clone())).err().unwrap_or_default();
        let about = |error: &&ConfigError| error.path == path && error.problem.contains("range");
        assert_eq!(errors.iter().find(about).is_none(), fits, "{path}: {value}: {errors:?}");
    }

    #[test]
    fn ranges_are_those_of_the_gateway() {
        let ms =
            |time: &str| gateway_core::config::Quantity(time.to_owned()).duration().expect("a time").as_millis() as u64;
        for field in gateway_half() {
            let (min, max, unit) = match field.form {
                Form::Number(min, max) => (min as u64, max as u64, None),
                Form::Time(min, max) => (ms(min), ms(max), Some("ms")),
                Form::Size(min, max) => (in_bytes(min), in_bytes(max), Some("B")),
                Form::Fraction(min, max) => {
                    for (number, fits) in [(min, true), (max, true), (max * 1.01, false), (min * 0.99, false)] {
                        check_range(field.path, &json!(number), fits);
                    }
                    continue;
                }
                _ => continue,
            };
            let value = |number: u64| unit.map_or(json!(number), |unit| json!(format!("{number}{unit}")));
            check_range(field.path, &value(min), true);
            check_range(field.path, &value(max), true);
            check_range(field.path, &value(max + 1), false);
            if let Some(below) = min.checked_sub(1) {
                check_range(field.path, &value(below), false);
            }
        }
    }

    #[test]
    fn defaults_are_those_of_the_gateway() {
        for field in gateway_half().filter(|field| !field.default.is_empty()) {
            let default = field.default.parse::<i64>().map_or(json!(field.default), |number| json!(number));
            let given = settings_with(field.path, Some(default));
            assert!(given.is_ok(), "{}: {given:?}", field.path);
            assert_eq!(given, settings_with(field.path, None), "{}", field.path);
        }
    }
}
