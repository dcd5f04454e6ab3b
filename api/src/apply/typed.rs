//! Objects seen through their types: which paths they set, how two differ, what merging and removing makes of them
//! (`sigs.k8s.io/structured-merge-diff/typed`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, Set};
use crate::schema::{Struct, Topology, Type};

/// How a place in an object merges.
#[derive(Clone, Copy)]
pub enum Shape {
    /// One value, however large.
    Leaf,
    Struct(&'static Struct),
    Map(&'static Type),
    /// Items with these key fields.
    ListMap(&'static [&'static str], &'static Struct),
    Set,
}

impl Shape {
    fn of(ty: &'static Type, topology: Topology) -> Self {
        match (ty, topology) {
            (_, Topology::Atomic) => Self::Leaf,
            (Type::Struct(inner), Topology::Granular) => Self::Struct(inner),
            (Type::Struct(inner), _) => {
                if inner.atomic {
                    Self::Leaf
                } else {
                    Self::Struct(inner)
                }
            }
            (Type::Map(value), _) => Self::Map(value),
            (Type::List(_), Topology::Set) => Self::Set,
            (Type::List(Type::Struct(item)), Topology::Map(keys)) => Self::ListMap(keys, item),
            _ => Self::Leaf,
        }
    }

    /// The shape of a member of a struct or map; unknown fields are leaves.
    fn member(self, name: &str) -> Self {
        match self {
            Self::Struct(ty) => ty
                .field(name)
                .map_or(Self::Leaf, |f| Self::of(&f.ty, f.topology)),
            Self::Map(value) => Self::of(value, Topology::Default),
            _ => Self::Leaf,
        }
    }

    /// The value's parts, if it has the form that the shape asks for. Null is a thing without parts.
    fn parts(self, value: Option<&Value>) -> Option<Vec<(Element, Shape, &Value)>> {
        match (self, value) {
            (Self::Leaf, _) => None,
            (_, None | Some(Value::Null)) => Some(Vec::new()),
            (Self::Struct(_) | Self::Map(_), Some(Value::Object(map))) => Some(
                map.iter()
                    .map(|(k, v)| (Element::Field(k.clone()), self.member(k), v))
                    .collect(),
            ),
            (Self::ListMap(keys, item), Some(Value::Array(list))) => Some(
                list.iter()
                    .map(|v| (key_of(keys, item, v), Self::Struct(item), v))
                    .collect(),
            ),
            (Self::Set, Some(Value::Array(list))) => Some(
                list.iter()
                    .map(|v| (Element::value(v), Self::Leaf, v))
                    .collect(),
            ),
            _ => None,
        }
    }
}

fn key_of(keys: &[&str], item: &'static Struct, value: &Value) -> Element {
    let mut fields = Map::new();
    for key in keys {
        let default = item.field(key).and_then(|f| f.default);
        match (value.get(key), default) {
            (Some(value), _) => drop(fields.insert((*key).to_owned(), value.clone())),
            (None, Some(default)) => drop(fields.insert((*key).to_owned(), default.into())),
            (None, None) => {}
        }
    }
    Element::key(fields)
}

/// The paths that an object sets.
pub fn field_set(shape: Shape, value: &Value) -> Set {
    let Some(parts) = shape.parts(Some(value)) else {
        return Set::leaf();
    };
    let mut set = Set::default();
    for (element, part, value) in parts {
        let mut child = field_set(part, value);
        // A struct's field stands for its parts, unless it has none; items of lists and keys of maps stand for themselves.
        let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        child.member |= empty || !matches!(shape, Shape::Struct(_));
        set.insert(element, child);
    }
    set
}

/// How one object differs from another.
#[derive(Debug, Default)]
pub struct Difference {
    pub added: Set,
    pub removed: Set,
    pub modified: Set,
}

impl Difference {
    fn insert(&mut self, element: &Element, part: Difference) {
        self.added.insert(element.clone(), part.added);
        self.removed.insert(element.clone(), part.removed);
        self.modified.insert(element.clone(), part.modified);
    }
}

/// What changes from `old` to `new`.
pub fn compare(shape: Shape, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut difference = Difference::default();
    let (Some(olds), Some(news)) = (shape.parts(old), shape.parts(new)) else {
        match (old, new) {
            (None, None) => {}
            (None, Some(_)) => difference.added.member = true,
            (Some(_), None) => difference.removed.member = true,
            (Some(old), Some(new)) => difference.modified.member = old != new,
        }
        return difference;
    };
    difference.added.member = old.is_none() && new.is_some();
    difference.removed.member = old.is_some() && new.is_none();
    let mut pairs: BTreeMap<Element, (Shape, Option<&Value>, Option<&Value>)> = BTreeMap::new();
    for (element, part, value) in olds {
        pairs.insert(element, (part, Some(value), None));
    }
    for (element, part, value) in news {
        pairs.entry(element).or_insert((part, None, None)).2 = Some(value);
    }
    for (element, (part, old, new)) in pairs {
        if old != new {
            difference.insert(&element, compare(part, old, new));
        }
    }
    difference
}

/// `config` laid over `live`.
pub fn merge(shape: Shape, live: Option<&Value>, config: &Value) -> Value {
    let (Some(lives), Some(wanted)) = (shape.parts(live), shape.parts(Some(config))) else {
        return config.clone();
    };
    if config.is_null() {
        return Value::Null;
    }
    match shape {
        Shape::Struct(_) | Shape::Map(_) => {
            let mut map = live.and_then(Value::as_object).cloned().unwrap_or_default();
            for (element, part, value) in wanted {
                if let Element::Field(name) = element {
                    let merged = merge(part, map.get(&name), value);
                    map.insert(name, merged);
                }
            }
            Value::Object(map)
        }
        _ => Value::Array(merge_lists(&lives, &wanted)),
    }
}

/// Items of both lists, each once: the config's order where the two share items, others in their place.
fn merge_lists(
    lives: &[(Element, Shape, &Value)],
    wanted: &[(Element, Shape, &Value)],
) -> Vec<Value> {
    let in_wanted = |element: &Element| wanted.iter().any(|(e, ..)| e == element);
    let mut live = lives.iter().peekable();
    let mut merged = Vec::with_capacity(lives.len() + wanted.len());
    for (element, shape, value) in wanted {
        while let Some((_, _, alone)) = live.next_if(|(e, ..)| !in_wanted(e)) {
            merged.push((*alone).clone());
        }
        let existing = lives
            .iter()
            .find(|(e, ..)| e == element)
            .map(|(_, _, v)| *v);
        if existing.is_some() {
            // The config's item takes the place of the live list's next shared one.
            live.next_if(|(e, ..)| in_wanted(e));
        }
        merged.push(merge(*shape, existing, value));
    }
    merged.extend(
        live.filter(|(e, ..)| !in_wanted(e))
            .map(|(_, _, v)| (*v).clone()),
    );
    merged
}

/// Removes the paths in `gone` from the value, except where something under them is in `kept`.
/// Returns `None` if nothing is left of it.
pub fn remove(shape: Shape, value: &Value, gone: &Set, kept: Option<&Set>) -> Option<Value> {
    if gone.member && kept.is_none_or(Set::is_empty) {
        return None;
    }
    let parts = shape
        .parts(Some(value))
        .filter(|parts| !parts.is_empty() && !gone.children.is_empty());
    let Some(parts) = parts else {
        return Some(value.clone());
    };
    let left = parts.into_iter().filter_map(|(element, part, value)| {
        let left = match gone.children.get(&element) {
            Some(gone) => remove(
                part,
                value,
                gone,
                kept.and_then(|k| k.children.get(&element)),
            )?,
            None => value.clone(),
        };
        Some((element, left))
    });
    let left: Value = match shape {
        Shape::Struct(_) | Shape::Map(_) => left
            .filter_map(|(element, value)| match element {
                Element::Field(name) => Some((name, value)),
                _ => None,
            })
            .collect::<Map<_, _>>()
            .into(),
        _ => left.map(|(_, value)| value).collect::<Vec<_>>().into(),
    };
    let empty =
        left.as_array().is_some_and(Vec::is_empty) || left.as_object().is_some_and(Map::is_empty);
    (!empty || kept.is_some_and(|k| k.member)).then_some(left)
}
