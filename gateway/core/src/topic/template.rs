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
        let mut template = Self { segments: Vec::new(), tail: Tail::None, names_device: false, names_module: false };
        let text = text.strip_suffix('/').unwrap_or(text);
        let mut segments = text.split('/').peekable();
        while let Some(segment) = segments.next() {
            match tail(segment)? {
                Some(tail) if segments.peek().is_none() => template.tail = tail,
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
        let Some(tail) = self.tail_of(topic) else { return Ok(Match::Other) };
        if !self.names(identity, topic) {
            return Ok(Match::Foreign);
        }
        self.bind_variables(topic, properties_max, out)?;
        match (&self.tail, tail) {
            (Tail::Properties, bag) => bag::decode(bag, properties_max, out)?,
            (Tail::Rest(_), "") | (Tail::None, _) => {}
            (Tail::Rest(name), rest) => variable(name, rest, properties_max, out)?,
        }
        Ok(Match::Bound)
    }

    /// If `topic` is of this form: what follows the segments (empty if there is no tail in the template).
    fn tail_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let mut topic = Segments(Some(topic));
        for segment in &self.segments {
            let text = topic.next();
            let fits = match segment {
                Segment::Literal(literal) => text == Some(literal),
                Segment::DeviceId | Segment::ModuleId => text.is_some_and(|text| !text.is_empty()),
                Segment::Variable { default, .. } => text.is_some() || default.is_some(),
            };
            if !fits {
                return None;
            }
        }
        let rest = topic.0.unwrap_or_default();
        (self.tail != Tail::None || rest.is_empty()).then_some(rest)
    }

    /// Whether the ids in `topic`, if any, are those of `identity`: a device cannot send as a module, nor the reverse.
    fn names(&self, identity: &DeviceId, topic: &str) -> bool {
        if !self.names_device {
            return true;
        }
        if self.names_module != identity.module().is_some() {
            return false;
        }
        self.segments.iter().zip(Segments(Some(topic))).all(|(segment, text)| match segment {
            Segment::DeviceId => id_form(text, identity.device()).is_some(),
            Segment::ModuleId => identity.module().is_some_and(|id| id_form(text, id).is_some()),
            _ => true,
        })
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
        if self.segments.contains(&segment) && !matches!(segment, Segment::Literal(_)) || self.has(&segment) {
            return Err(TemplateError::Twice(text.trim_matches(['{', '}']).to_owned()));
        }
        match segment {
            Segment::DeviceId => self.names_device = true,
            Segment::ModuleId if !self.names_device => return Err(TemplateError::ModuleAlone),
            Segment::ModuleId => self.names_module = true,
            Segment::Literal(_) | Segment::Variable { .. } => {}
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Whether a variable of the same name is there already, with whatever default.
    fn has(&self, segment: &Segment) -> bool {
        let name_of = |segment: &Segment| match segment {
            Segment::Variable { name, .. } => Some(name.clone()),
            _ => None,
        };
        let name = name_of(segment);
        name.is_some() && self.segments.iter().any(|known| name_of(known) == name)
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
