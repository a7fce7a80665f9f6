//! Topic templates: which topics are telemetry, and what their segments say (contract §1.3).
//!
//! `{name}` takes one segment, `{name=default}` too, or the default where there is none; `{*name}` last takes the rest as it
//! is, `{*properties}` last takes it as a property bag. Every variable but `deviceId` and `moduleId` becomes an application
//! property of its name. One `/` at the end of a topic does not count.

use super::{
    bag::{self, BagError},
    id_form, percent,
};
use crate::message::{DeviceId, PropertyName, PropertyText};

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
    tail: Tail,
    names_device: bool,
    names_module: bool,
    has_variables: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    DeviceId,
    ModuleId,
    Variable { name: Box<str>, default: Option<Box<str>> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tail {
    None,
    Rest(Box<str>),
    Properties,
}

/// The parts of a topic that matter, as they stand in it.
struct Shape<'t> {
    device: &'t str,
    module: &'t str,
    /// What follows the segments; empty if nothing does.
    tail: &'t str,
}

/// What a template says about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// It is of this form, and its properties were added.
    Bound,
    /// It is of another form.
    Other,
    /// It is of this form and names another device or module.
    Foreign,
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Empty, or longer than 1024 bytes.
    #[error("a template has 1 to 1024 bytes")]
    Length,
    /// A wildcard or NUL, which no topic name holds.
    #[error("a topic name never holds '+', '#' or NUL")]
    Character,
    /// `{` or `}` that are not around a whole segment.
    #[error("braces enclose a whole segment: \"{0}\" is not a variable")]
    Braces(String),
    /// A name other than letters, digits, `.`, `_`, `-`.
    #[error("a variable's name has letters, digits, '.', '_' and '-': \"{0}\"")]
    Name(String),
    /// A variable twice.
    #[error("variable \"{0}\" stands twice")]
    Twice(String),
    /// `{*name}` before the last segment.
    #[error("\"{{*{0}}}\" takes the rest and can only be the last segment")]
    NotLast(String),
    /// A default that cannot be given, or is badly encoded.
    #[error("\"{0}\" cannot have that default")]
    Default(String),
    /// A default followed by something that is always there.
    #[error("after a variable with a default, only such variables can follow, not \"{0}\"")]
    AfterDefault(String),
    /// A property bag that is not the tail.
    #[error("a property bag is written {{*properties}}")]
    Properties,
    /// A module without its device.
    #[error("{{moduleId}} needs {{deviceId}} before it")]
    ModuleAlone,
}

impl Template {
    /// Compiles `text`.
    pub fn compile(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() || text.len() > 1024 {
            return Err(TemplateError::Length);
        }
        if text.contains(['+', '#', '\0']) {
            return Err(TemplateError::Character);
        }
        let mut template = Self {
            segments: Vec::new(),
            tail: Tail::None,
            names_device: false,
            names_module: false,
            has_variables: false,
        };
        let text = text.strip_suffix('/').unwrap_or(text);
        let mut segments = text.split('/').peekable();
        while let Some(segment) = segments.next() {
            match tail(segment)? {
                Some(tail) if segments.peek().is_none() => template.end_with(tail)?,
                Some(_) => return Err(TemplateError::NotLast(segment[2..segment.len() - 1].to_owned())),
                None => template.push(segment)?,
            }
        }
        Ok(template)
    }

    /// Whether `topic` is of this form for `identity`; if so, its properties are added to `out`.
    #[inline]
    pub(crate) fn bind(
        &self,
        identity: &DeviceId,
        topic: &str,
        properties_max: usize,
        out: &mut PropertyText,
    ) -> Result<Match, BagError> {
        let Some(shape) = self.shape(topic) else { return Ok(Match::Other) };
        if !self.names(identity, &shape) {
            return Ok(Match::Foreign);
        }
        if self.has_variables {
            self.bind_variables(topic, properties_max, out)?;
        }
        match (&self.tail, shape.tail) {
            (Tail::Properties, bag) => bag::decode(bag, properties_max, out)?,
            (Tail::Rest(_), "") | (Tail::None, _) => {}
            (Tail::Rest(name), rest) => variable(name, rest, properties_max, out)?,
        }
        Ok(Match::Bound)
    }

    /// The parts of `topic` that matter, if it is of this form.
    fn shape<'t>(&self, topic: &'t str) -> Option<Shape<'t>> {
        let mut shape = Shape { device: "", module: "", tail: "" };
        let mut topic = Segments(Some(topic));
        for segment in &self.segments {
            match (segment, topic.next()) {
                (Segment::Literal(literal), Some(text)) if **literal == *text => {}
                (Segment::DeviceId, Some(text)) if !text.is_empty() => shape.device = text,
                (Segment::ModuleId, Some(text)) if !text.is_empty() => shape.module = text,
                (Segment::Variable { .. }, Some(_)) | (Segment::Variable { default: Some(_), .. }, None) => {}
                _ => return None,
            }
        }
        shape.tail = topic.0.unwrap_or_default();
        (self.tail != Tail::None || shape.tail.is_empty()).then_some(shape)
    }

    /// Whether the ids in the topic, if any, are those of `identity`: a device cannot send as a module, nor the reverse.
    fn names(&self, identity: &DeviceId, shape: &Shape<'_>) -> bool {
        let names_module = || match identity.module() {
            None => !self.names_module,
            Some(id) => self.names_module && id_form(shape.module, id).is_some(),
        };
        !self.names_device || (names_module() && id_form(shape.device, identity.device()).is_some())
    }

    fn bind_variables(&self, topic: &str, properties_max: usize, out: &mut PropertyText) -> Result<(), BagError> {
        let mut topic = Segments(Some(topic));
        for segment in &self.segments {
            let text = topic.next().unwrap_or_default();
            if let Segment::Variable { name, default } = segment {
                let text = default.as_deref().filter(|_| text.is_empty()).unwrap_or(text);
                variable(name, text, properties_max, out)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, text: &str) -> Result<(), TemplateError> {
        let segment = segment(text)?;
        let follows_default = matches!(self.segments.last(), Some(Segment::Variable { default: Some(_), .. }));
        let has_default = matches!(segment, Segment::Variable { default: Some(_), .. });
        if follows_default && !has_default {
            return Err(TemplateError::AfterDefault(text.to_owned()));
        }
        if let Some(name) = segment.name() {
            self.check_new(name)?;
        }
        match segment {
            Segment::DeviceId => self.names_device = true,
            Segment::ModuleId if !self.names_device => return Err(TemplateError::ModuleAlone),
            Segment::ModuleId => self.names_module = true,
            Segment::Variable { .. } => self.has_variables = true,
            Segment::Literal(_) => {}
        }
        self.segments.push(segment);
        Ok(())
    }

    fn end_with(&mut self, tail: Tail) -> Result<(), TemplateError> {
        if let Tail::Rest(name) = &tail {
            self.check_new(name)?;
        }
        self.tail = tail;
        Ok(())
    }

    fn check_new(&self, name: &str) -> Result<(), TemplateError> {
        if self.segments.iter().any(|known| known.name() == Some(name)) {
            return Err(TemplateError::Twice(name.to_owned()));
        }
        Ok(())
    }
}

impl Segment {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::DeviceId => Some("deviceId"),
            Self::ModuleId => Some("moduleId"),
            Self::Variable { name, .. } => Some(name),
        }
    }
}

/// A topic's segments; what is left of it stays in the field. `None`: nothing, not even an empty segment.
struct Segments<'a>(Option<&'a str>);

impl<'a> Iterator for Segments<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let (segment, rest) = match rest.split_once('/') {
            None => (rest, None),
            Some((segment, rest)) => (segment, Some(rest)),
        };
        self.0 = rest;
        Some(segment)
    }
}

/// Adds what a variable was bound to, decoded.
fn variable(name: &str, encoded: &str, properties_max: usize, out: &mut PropertyText) -> Result<(), BagError> {
    let start = out.text.len() as u32;
    out.text.push_str(name);
    let middle = out.text.len() as u32;
    percent::decode(encoded, &mut out.text)?;
    let end = out.text.len() as u32;
    bag::set_application(PropertyName::Text(start..middle), Some(middle..end), properties_max, out)
}

/// Reads `{*name}`.
fn tail(segment: &str) -> Result<Option<Tail>, TemplateError> {
    match segment.strip_prefix("{*").and_then(|name| name.strip_suffix('}')) {
        None => Ok(None),
        Some("properties") => Ok(Some(Tail::Properties)),
        Some(name @ ("deviceId" | "moduleId")) => Err(TemplateError::NotLast(name.to_owned())),
        Some(name) => Ok(Some(Tail::Rest(variable_name(name)?))),
    }
}

/// Reads one segment that is not a tail.
fn segment(text: &str) -> Result<Segment, TemplateError> {
    let Some(variable) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        return if text.contains(['{', '}']) {
            Err(TemplateError::Braces(text.to_owned()))
        } else {
            Ok(Segment::Literal(text.into()))
        };
    };
    let (name, default) = match variable.split_once('=') {
        None => (variable, None),
        Some((name, default)) => (name, Some(default)),
    };
    match (variable_name(name)?.as_ref(), default) {
        ("deviceId", None) => Ok(Segment::DeviceId),
        ("moduleId", None) => Ok(Segment::ModuleId),
        ("deviceId" | "moduleId", Some(_)) => Err(TemplateError::Default(name.to_owned())),
        ("properties", _) => Err(TemplateError::Properties),
        (name, default) => {
            let mut decoded = String::new();
            percent::decode(default.unwrap_or_default(), &mut decoded)
                .map_err(|_| TemplateError::Default(name.to_owned()))?;
            Ok(Segment::Variable { name: name.into(), default: default.map(Into::into) })
        }
    }
}

fn variable_name(name: &str) -> Result<Box<str>, TemplateError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(TemplateError::Name(name.to_owned()));
    }
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The application properties that `template` binds in `topic` for device `d` or module `d/m`, as `name=value …`.
    fn bound(template: &str, topic: &str, module: Option<&str>) -> Result<(Match, String), BagError> {
        let identity = DeviceId::new("d", module).unwrap();
        let mut out = PropertyText::default();
        let found = Template::compile(template).unwrap().bind(&identity, topic, 8, &mut out)?;
        let pair = |(name, value): &(PropertyName, Option<std::ops::Range<u32>>)| {
            format!("{}={}", out.name(name), value.as_ref().map_or("null", |value| out.get(value)))
        };
        Ok((found, out.application.iter().map(pair).collect::<Vec<_>>().join(" ")))
    }

    fn check(template: &str, topic: &str, expected: Result<&str, Match>) {
        let (found, text) = bound(template, topic, None).unwrap();
        let got = if found == Match::Bound { Ok(text.as_str()) } else { Err(found) };
        assert_eq!(got, expected, "{topic} by {template}");
    }

    #[test]
    fn the_telemetry_topic_matches_with_and_without_slashes_and_bag() {
        let events = "devices/{deviceId}/messages/events/{*properties}";
        check(events, "devices/d/messages/events", Ok(""));
        check(events, "devices/d/messages/events/", Ok(""));
        check(events, "devices/d/messages/events//", Ok(""));
        check(events, "devices/d/messages/events/a=b", Ok("a=b"));
        check(events, "devices/d/messages/events/a=b&c/", Ok("a=b c=null"));
        for other in [
            "",
            "/",
            "devices/d/messages",
            "devices/d/messages/eventsX",
            "devices//messages/events/",
            "Devices/d/messages/events/",
        ] {
            check(events, other, Err(Match::Other));
        }
    }

    #[test]
    fn a_bound_device_that_is_not_the_connected_one_is_foreign() {
        let events = "devices/{deviceId}/messages/events/{*properties}";
        check(events, "devices/e/messages/events/", Err(Match::Foreign));
        check(events, "devices/D/messages/events/", Err(Match::Foreign));
        check(events, "devices/dd/messages/events/", Err(Match::Foreign));
        check(events, "devices/%64/messages/events/", Ok(""));
    }

    #[test]
    fn a_module_sends_on_its_own_topic_only() {
        let device = "devices/{deviceId}/messages/events/{*properties}";
        let module = "devices/{deviceId}/modules/{moduleId}/messages/events/{*properties}";
        let found = |template, topic, module| bound(template, topic, module).unwrap().0;
        assert_eq!(found(module, "devices/d/modules/m/messages/events/", Some("m")), Match::Bound);
        assert_eq!(found(module, "devices/d/modules/n/messages/events/", Some("m")), Match::Foreign);
        assert_eq!(found(module, "devices/d/modules/m/messages/events/", None), Match::Foreign);
        assert_eq!(found(device, "devices/d/messages/events/", Some("m")), Match::Foreign);
        assert_eq!(found("log/{level}", "log/warn", Some("m")), Match::Bound);
    }

    #[test]
    fn variables_become_properties_and_defaults_stand_in() {
        let log = "devices/{deviceId}/messages/log/{level=info}/{subject=n%2Fa}";
        check(log, "devices/d/messages/log/warn", Ok("level=warn subject=n/a"));
        check(log, "devices/d/messages/log", Ok("level=info subject=n/a"));
        check(log, "devices/d/messages/log/", Ok("level=info subject=n/a"));
        check(log, "devices/d/messages/log//x%20y", Ok("level=info subject=x y"));
        check(log, "devices/d/messages/log/a/b/", Ok("level=a subject=b"));
        check(log, "devices/d/messages/log/a/b/c", Err(Match::Other));
        check("log/{level}", "log/warn", Ok("level=warn"));
        check("log/{level}", "log/", Ok("level="));
        check("log/{level}", "log", Err(Match::Other));
        assert_eq!(bound("log/{level}", "log/50%", None), Err(BagError::Percent));
    }

    #[test]
    fn a_rest_takes_slashes_and_may_be_missing() {
        let rest = "devices/{deviceId}/messages/outbound/{*subTopic}";
        check(rest, "devices/d/messages/outbound/a/b%2Fc/", Ok("subTopic=a/b/c/"));
        check(rest, "devices/d/messages/outbound", Ok(""));
        check(rest, "devices/d/messages/outbound/", Ok(""));
        check("{*all}", "x", Ok("all=x"));
    }

    #[test]
    fn a_template_without_tail_takes_one_slash_at_the_end() {
        check("devices/{deviceId}/log", "devices/d/log/", Ok(""));
        check("devices/{deviceId}/log/", "devices/d/log", Ok(""));
        check("devices/{deviceId}/log", "devices/d/log//", Err(Match::Other));
    }

    #[test]
    fn what_is_not_a_template_is_not_compiled() {
        let twice = |name: &str| TemplateError::Twice(name.to_owned());
        for (text, expected) in [
            ("", TemplateError::Length),
            ("a/+/b", TemplateError::Character),
            ("a/#", TemplateError::Character),
            ("a{b}", TemplateError::Braces("a{b}".to_owned())),
            ("{b}c", TemplateError::Braces("{b}c".to_owned())),
            ("{}", TemplateError::Name(String::new())),
            ("{a b}", TemplateError::Name("a b".to_owned())),
            ("{*}", TemplateError::Name(String::new())),
            ("{a}/{a}", twice("a")),
            ("{a}/{a=1}", twice("a")),
            ("{a}/{*a}", twice("a")),
            ("{deviceId}/{deviceId}", twice("deviceId")),
            ("{*rest}/x", TemplateError::NotLast("rest".to_owned())),
            ("{*properties}/x", TemplateError::NotLast("properties".to_owned())),
            ("{properties}", TemplateError::Properties),
            ("{deviceId=x}", TemplateError::Default("deviceId".to_owned())),
            ("{a=%}", TemplateError::Default("a".to_owned())),
            ("{a=1}/x", TemplateError::AfterDefault("x".to_owned())),
            ("{a=1}/{b}", TemplateError::AfterDefault("{b}".to_owned())),
            ("{moduleId}/x", TemplateError::ModuleAlone),
        ] {
            assert_eq!(Template::compile(text), Err(expected), "{text}");
        }
        assert_eq!(Template::compile(&"a".repeat(1025)), Err(TemplateError::Length));
    }

    proptest! {
        #[test]
        fn compiling_and_binding_never_panic(template in "[{}*=a/%+d]{0,20}", topic in "[a/%=&d2]{0,20}") {
            if let Ok(template) = Template::compile(&template) {
                let identity = DeviceId::new("d", None).unwrap();
                let _ = template.bind(&identity, &topic, 4, &mut PropertyText::default());
            }
        }

        #[test]
        fn a_topic_built_from_a_template_gives_the_values_back(level in ".{1,10}", subject in ".{1,10}") {
            let topic = format!("devices/d/log/{}/{}", percent::encoded(&level), percent::encoded(&subject));
            let expected = (Match::Bound, format!("level={level} subject={subject}"));
            prop_assert_eq!(bound("devices/{deviceId}/log/{level}/{subject}", &topic, None), Ok(expected));
        }
    }
}
