//! From the tree of the file to its form. What does not fit is reported and replaced by a stand-in, so that one reading finds
//! all that is wrong; [`Errors`] remembers what was replaced, and nothing that follows from a stand-in is reported.

use std::collections::BTreeSet;

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::{
    error::Errors,
    names,
    stand_in::StandIn,
    tree::{Name, Node, Value},
};

/// Missing fields that get a stand-in: each costs one more walk over the tree.
const SUPPLIED_MAX: usize = 100;

/// `None` if it could not be read to its end; the reasons are in [`Errors`] then.
pub(super) fn read<T: DeserializeOwned>(tree: &Node) -> (Option<T>, Errors) {
    let mut supplied = BTreeSet::new();
    loop {
        let mut reading = Reading { path: String::new(), errors: Errors::default(), supplied };
        reading.errors.place("", tree.place);
        let problem = match T::deserialize(Reader { node: tree, reading: &mut reading }) {
            Ok(value) => return (Some(value), reading.errors),
            // which fields must be there is known only to the form, and it gives up at the first that is not
            Err(Stop::Missing(field)) if reading.can_supply(field) => {
                let path = reading.path_of(field);
                supplied = reading.supplied;
                supplied.insert(path);
                continue;
            }
            Err(stop) => stop.to_string(),
        };
        reading.errors.unreadable(&reading.path, None, problem, "write it as in gateway.example.yaml");
        return (None, reading.errors);
    }
}

/// One walk over the tree.
struct Reading {
    /// Of the node in hand; after a stop, of the node that stopped.
    path: String,
    errors: Errors,
    /// Paths of missing fields that are given a stand-in.
    supplied: BTreeSet<String>,
}

impl Reading {
    fn can_supply(&self, field: &str) -> bool {
        self.supplied.len() < SUPPLIED_MAX && !self.supplied.contains(&self.path_of(field))
    }

    fn path_of(&self, field: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{field}", self.path)
    }

    /// Reads `node` one step further down.
    fn enter<'de, S: DeserializeSeed<'de>>(
        &mut self,
        path: String,
        node: &'de Node,
        seed: S,
    ) -> Result<S::Value, Stop> {
        self.errors.place(&path, node.place);
        let above = std::mem::replace(&mut self.path, path);
        let value = seed.deserialize(Reader { node, reading: self })?;
        self.path = above;
        Ok(value)
    }

    /// The fields that are known here, each once; all others are reported.
    fn sort<'de>(&mut self, fields: &'static [&'static str], written: &'de [(Name, Node)]) -> Vec<Field<'de>> {
        let mut sorted: Vec<Field<'de>> = Vec::new();
        let mut unknown = Vec::new();
        for (name, node) in written {
            match fields.iter().find(|field| **field == name.text) {
                Some(field) if sorted.iter().any(|(other, _)| other == field) => {
                    self.errors.twice(&self.path_of(field), name.place);
                }
                Some(field) => sorted.push((field, Some(node))),
                None => unknown.push((name, node)),
            }
        }
        for (name, node) in unknown {
            let path = self.path_of(&name.text);
            let remedy = names::suggestion(&name.text, fields);
            self.errors.unreadable(&path, Some(name.place), "is not known", remedy);
            let meant = names::nearest(&name.text, fields);
            match meant.filter(|meant| sorted.iter().all(|(other, _)| other != meant)) {
                Some(meant) if names::is_slip(&name.text, meant) => sorted.push((meant, Some(node))),
                Some(meant) => self.errors.replaced(self.path_of(meant)),
                None => {}
            }
        }
        self.supply(fields, &mut sorted);
        sorted
    }

    fn supply(&mut self, fields: &'static [&'static str], sorted: &mut Vec<Field<'_>>) {
        for field in fields {
            let path = self.path_of(field);
            if self.supplied.contains(&path) {
                if self.errors.was_read(&path) {
                    self.errors.unreadable(&path, None, "is missing", format!("add {field}"));
                }
                sorted.push((field, None));
            }
        }
    }
}

/// A known field; without a node it gets a stand-in.
type Field<'de> = (&'static str, Option<&'de Node>);

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0}")]
    Other(String),
}

impl serde::de::Error for Stop {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Other(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

/// Hands one node to the form, or, if it is not of the kind that is asked for, a stand-in.
struct Reader<'r, 'de> {
    node: &'de Node,
    reading: &'r mut Reading,
}

impl Reader<'_, '_> {
    fn unfit(self, expected: impl std::fmt::Display) -> StandIn {
        let remedy = format!("write {expected}");
        let problem = self.node.value.kind();
        self.replace(problem, remedy)
    }

    fn replace(self, problem: impl Into<String>, remedy: String) -> StandIn {
        self.reading.errors.unreadable(&self.reading.path, Some(self.node.place), problem, remedy);
        StandIn
    }
}

impl<'de> Deserializer<'de> for Reader<'_, 'de> {
    type Error = Stop;

    /// What is asked for in this way is a size or a time.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Number(number) => visitor.visit_f64(*number),
            Value::Nothing | Value::Bool(_) | Value::List(_) | Value::Fields(_) => {
                let stand_in = self.unfit(&visitor as &dyn Expected);
                stand_in.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            _ => self.unfit("true or false").deserialize_bool(visitor),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Integer(number) => visitor.visit_i64(*number),
            _ => self.unfit("a whole number, without unit and fraction").deserialize_i64(visitor),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Number(number) => visitor.visit_f64(*number),
            _ => self.unfit("a number, without unit").deserialize_f64(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            _ => self.unfit("text, in quotes if it could be taken for something else").deserialize_str(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Nothing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::List(list) => visitor.visit_seq(Items { list, next: 0, reading: self.reading }),
            Value::Nothing => StandIn.deserialize_seq(visitor),
            _ => self.unfit("a list").deserialize_seq(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let written = match &self.node.value {
            Value::Fields(written) => written.as_slice(),
            Value::Nothing => &[],
            _ => {
                let expected = format!("fields: {}", fields.join(", "));
                return self.unfit(expected).deserialize_struct(name, fields, visitor);
            }
        };
        let fields = self.reading.sort(fields, written);
        visitor.visit_map(Fields { rest: fields.into_iter(), value: None, reading: self.reading })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let Value::Text(text) = &self.node.value else {
            let expected = format!("one of {}", variants.join(", "));
            return self.unfit(expected).deserialize_enum(name, variants, visitor);
        };
        if let Some(variant) = variants.iter().find(|variant| *variant == text) {
            return visitor.visit_enum(variant.into_deserializer());
        }
        let (problem, remedy) = (format!("\"{text}\" is not known"), names::suggestion(text, variants));
        self.replace(problem, remedy).deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct
        map identifier ignored_any
    }
}

struct Items<'r, 'de> {
    list: &'de [Node],
    next: usize,
    reading: &'r mut Reading,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Stop> {
        let Some(node) = self.list.get(self.next) else { return Ok(None) };
        let path = format!("{}[{}]", self.reading.path, self.next);
        self.next += 1;
        self.reading.enter(path, node, seed).map(Some)
    }
}

struct Fields<'r, 'de> {
    rest: std::vec::IntoIter<Field<'de>>,
    /// The field whose name was handed out last.
    value: Option<Field<'de>>,
    reading: &'r mut Reading,
}

impl<'de> MapAccess<'de> for Fields<'_, 'de> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        self.value = self.rest.next();
        let Some((field, _)) = self.value else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(field)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Stop> {
        match self.value.take() {
            Some((field, Some(node))) => self.reading.enter(self.reading.path_of(field), node, seed),
            Some((_, None)) | None => seed.deserialize(StandIn),
        }
    }
}
