//! Sets of field paths, and their JSON form `FieldsV1` (`sigs.k8s.io/structured-merge-diff/fieldpath`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of a struct, or a key of a map.
    Field(String),
    /// The item of a list with these key fields; JSON with sorted keys.
    Key(String),
    /// The item of a set with this value; JSON.
    Value(String),
    /// The item of a list at this index.
    Index(usize),
}

/// A set of paths, as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The path to this node is in the set.
    pub member: bool,
    pub children: BTreeMap<Element, Set>,
}

impl Set {
    /// Only the root.
    pub fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Set::is_empty)
    }

    /// Adds a subtree, unless it is empty.
    pub fn insert(&mut self, element: Element, child: Set) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }

    pub fn union(&self, other: &Set) -> Set {
        let mut union = self.clone();
        union.member |= other.member;
        for (element, child) in &other.children {
            let merged = union
                .children
                .get(element)
                .map_or_else(|| child.clone(), |mine| mine.union(child));
            union.insert(element.clone(), merged);
        }
        union
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let mut both = Set {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.insert(element.clone(), child.intersection(theirs));
            }
        }
        both
    }

    /// What is in this set and not in the other.
    pub fn difference(&self, other: &Set) -> Set {
        let mut left = Set {
            member: self.member && !other.member,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            let rest = other
                .children
                .get(element)
                .map_or_else(|| child.clone(), |theirs| child.difference(theirs));
            left.insert(element.clone(), rest);
        }
        left
    }

    /// Removes everything at and under a path of fields.
    pub fn remove_under(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else { return };
        let element = Element::Field((*first).to_owned());
        if rest.is_empty() {
            self.children.remove(&element);
        } else if let Some(child) = self.children.get_mut(&element) {
            child.remove_under(rest);
            if child.is_empty() {
                self.children.remove(&element);
            }
        }
    }

    /// Every path in the set as text: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: &mut String, into: &mut Vec<String>) {
        if self.member {
            into.push(path.clone());
        }
        for (element, child) in &self.children {
            let length = path.len();
            element.print(path);
            child.collect(path, into);
            path.truncate(length);
        }
    }

    /// The JSON form.
    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.to_key(), child.to_fields_v1());
        }
        Value::Object(map)
    }

    /// Reads the JSON form; entries of an unknown form are left out.
    pub fn from_fields_v1(value: &Value) -> Self {
        let mut set = Set::default();
        for (key, value) in value.as_object().into_iter().flatten() {
            if key == "." {
                set.member = true;
            } else if let Some(element) = Element::from_key(key) {
                let mut child = Set::from_fields_v1(value);
                // A node without children is there for itself.
                child.member |= child.children.is_empty();
                set.children.insert(element, child);
            }
        }
        set
    }
}

impl Element {
    fn to_key(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(key) => format!("k:{key}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn from_key(key: &str) -> Option<Self> {
        let (prefix, rest) = key.split_once(':')?;
        match prefix {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => Some(Self::Key(canonical(serde_json::from_str(rest).ok()?))),
            "v" => Some(Self::Value(canonical(serde_json::from_str(rest).ok()?))),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }

    /// The element of a list item with the given key fields.
    pub fn key(mut fields: Map<String, Value>) -> Self {
        fields.sort_keys();
        Self::Key(Value::Object(fields).to_string())
    }

    /// The element of a set's item.
    pub fn value(value: &Value) -> Self {
        Self::Value(value.to_string())
    }

    fn print(&self, out: &mut String) {
        // Writing to a string can't fail.
        let _ = match self {
            Self::Field(name) => write!(out, ".{name}"),
            Self::Index(index) => write!(out, "[{index}]"),
            Self::Value(value) => write!(out, "[={value}]"),
            Self::Key(key) => {
                let fields: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let parts: Vec<String> = fields
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                write!(out, "[{}]", parts.join(","))
            }
        };
    }
}

fn canonical(mut value: Value) -> String {
    if let Value::Object(map) = &mut value {
        map.sort_keys();
    }
    value.to_string()
}
