//! Strategic merge patch: a merge patch that merges lists by key instead of replacing them
//! (`k8s.io/apimachinery/pkg/util/strategicpatch`).

use serde_json::{Map, Value};

use crate::schema::{Patch, Struct, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// A patch that can't be applied. The texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("cannot patch {found}: a strategic merge patch is an object")]
    NotAnObject { found: &'static str },
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: String },
    #[error("invalid value of directive {directive}: {value}")]
    Directive { directive: String, value: String },
}

type Object = Map<String, Value>;

/// What the walk knows about the type at a place; unknown places merge as plain JSON.
#[derive(Clone, Copy)]
enum Known {
    Struct(&'static Struct),
    Map(&'static Type),
    Nothing,
}

impl Known {
    fn of(ty: &'static Type) -> Self {
        match ty {
            Type::Struct(inner) => Self::Struct(inner),
            Type::Map(value) => Self::Map(value),
            _ => Self::Nothing,
        }
    }

    /// The type and the patch rule of a field.
    fn field(self, name: &str) -> (Option<&'static Type>, Option<Patch>) {
        match self {
            Self::Struct(ty) => ty
                .field(name)
                .map_or((None, None), |f| (Some(&f.ty), f.patch)),
            Self::Map(value) => (Some(value), None),
            Self::Nothing => (None, None),
        }
    }
}

/// Applies `patch` to `original`, an object of type `ty`, and returns the result.
///
/// # Errors
/// [`PatchError`] if the patch isn't an object, a list item lacks its merge key, or a directive is malformed.
pub fn strategic(
    ty: &'static Struct,
    original: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        let found = if patch.is_object() {
            "a value that is no object"
        } else {
            "with a value that is no object"
        };
        return Err(PatchError::NotAnObject { found });
    };
    merge_objects(Known::Struct(ty), original.clone(), patch).map(Value::Object)
}

fn merge_objects(known: Known, mut into: Object, patch: &Object) -> Result<Object, PatchError> {
    match patch.get(DIRECTIVE).map(|d| (d, d.as_str())) {
        Some((_, Some("replace"))) => return Ok(without_directives(patch)),
        Some((_, Some("delete"))) => return Ok(Object::new()),
        Some((_, Some("merge"))) | None => {}
        Some((other, _)) => return Err(bad_directive(DIRECTIVE, other)),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys
            .as_array()
            .ok_or_else(|| bad_directive(RETAIN_KEYS, keys))?;
        into.retain(|key, _| keys.iter().any(|k| k == key));
    }
    delete_from_lists(&mut into, patch)?;
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let (ty, rule) = known.field(key);
        let order = patch.get(&format!("{SET_ORDER}{key}"));
        let merged = match (into.get_mut(key).map(Value::take), value) {
            (_, Value::Null) => {
                into.shift_remove(key);
                continue;
            }
            (Some(Value::Object(old)), Value::Object(new))
                if rule.is_none_or(|r| r.merge || r.retain_keys) =>
            {
                Value::Object(merge_objects(
                    ty.map_or(Known::Nothing, Known::of),
                    old,
                    new,
                )?)
            }
            (old, Value::Array(new)) => {
                let old = match old {
                    Some(Value::Array(old)) => old,
                    _ => Vec::new(),
                };
                Value::Array(merge_lists(ty, rule, old, new, order)?)
            }
            (_, new) => plain(new),
        };
        into.insert(key.clone(), merged);
    }
    order_untouched_lists(known, &mut into, patch)?;
    Ok(into)
}

fn bad_directive(directive: &str, value: &Value) -> PatchError {
    PatchError::Directive {
        directive: directive.to_owned(),
        value: value.to_string(),
    }
}

fn delete_from_lists(into: &mut Object, patch: &Object) -> Result<(), PatchError> {
    for (directive, values) in patch.iter().filter(|(key, _)| key.starts_with(DELETE_FROM)) {
        let values = values
            .as_array()
            .ok_or_else(|| bad_directive(directive, values))?;
        if let Some(Value::Array(list)) = into.get_mut(&directive[DELETE_FROM.len()..]) {
            list.retain(|item| !values.contains(item));
        }
    }
    Ok(())
}

/// Lists that are only put into another order.
fn order_untouched_lists(
    known: Known,
    into: &mut Object,
    patch: &Object,
) -> Result<(), PatchError> {
    for (directive, order) in patch.iter().filter(|(key, _)| key.starts_with(SET_ORDER)) {
        let name = &directive[SET_ORDER.len()..];
        if patch.contains_key(name) {
            continue;
        }
        let key = known.field(name).1.and_then(|rule| rule.key);
        if let Some(Value::Array(list)) = into.get_mut(name) {
            let old = list.clone();
            *list = in_order(std::mem::take(list), &old, key, Some(order))?;
        }
    }
    Ok(())
}

fn merge_lists(
    ty: Option<&'static Type>,
    rule: Option<Patch>,
    old: Vec<Value>,
    patch: &[Value],
    order: Option<&Value>,
) -> Result<Vec<Value>, PatchError> {
    let Some(rule) = rule.filter(|rule| rule.merge) else {
        return Ok(patch.iter().map(plain).collect());
    };
    let before = old.clone();
    let merged = match (rule.key, ty) {
        (Some(key), Some(Type::List(item))) => merge_keyed(Known::of(item), key, old, patch)?,
        _ => {
            let mut merged = old;
            for value in patch {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            merged
        }
    };
    in_order(merged, &before, rule.key, order)
}

fn merge_keyed(
    item: Known,
    key: &str,
    old: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, PatchError> {
    // One item that says "replace" makes the patch the whole list.
    if patch.iter().any(|p| p[DIRECTIVE] == "replace") {
        let items = patch
            .iter()
            .filter(|p| p[DIRECTIVE] != "replace" || p.as_object().is_some_and(|o| o.len() > 1));
        return Ok(items.map(plain).collect());
    }
    let mut merged = old;
    for change in patch {
        let value = change.get(key).ok_or_else(|| PatchError::NoMergeKey {
            item: change.to_string(),
            key: key.to_owned(),
        })?;
        let found = merged
            .iter()
            .position(|existing| existing.get(key) == Some(value));
        match (found, change.as_object()) {
            (Some(_), Some(change)) if change.get(DIRECTIVE).is_some_and(|d| d == "delete") => {
                merged.retain(|existing| existing.get(key) != Some(value));
            }
            (None, Some(change)) if change.get(DIRECTIVE).is_some_and(|d| d == "delete") => {}
            (Some(at), Some(change)) => {
                if let Value::Object(existing) = merged[at].take() {
                    merged[at] = Value::Object(merge_objects(item, existing, change)?);
                }
            }
            _ => merged.push(plain(change)),
        }
    }
    Ok(merged)
}

/// Puts a merged list into the order that the patch asks for; items that the patch doesn't name keep their place among
/// those of `before`.
fn in_order(
    merged: Vec<Value>,
    before: &[Value],
    key: Option<&str>,
    order: Option<&Value>,
) -> Result<Vec<Value>, PatchError> {
    let Some(order) = order else {
        return Ok(merged);
    };
    let order = order
        .as_array()
        .ok_or_else(|| bad_directive(SET_ORDER, order))?;
    let same = |a: &Value, b: &Value| match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    };
    let place = |item: &Value, list: &[Value]| list.iter().position(|other| same(item, other));
    let (mut named, others): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| place(item, order).is_some());
    named.sort_by_key(|item| place(item, order));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let others_first = match (others.peek(), named.peek()) {
            (None, None) => return Ok(result),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(next)) => {
                matches!((place(other, before), place(next, before)), (Some(o), Some(n)) if o < n)
            }
        };
        result.extend(if others_first {
            others.next()
        } else {
            named.next()
        });
    }
}

/// What a patch adds where there was nothing: its values without nulls and directives.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(without_directives(object)),
        Value::Array(list) => {
            let kept = list
                .iter()
                .filter(|item| item.get(DIRECTIVE).is_none_or(|d| d != "delete"));
            Value::Array(kept.map(plain).collect())
        }
        other => other.clone(),
    }
}

fn without_directives(object: &Object) -> Object {
    let kept = object
        .iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key));
    kept.map(|(key, value)| (key.clone(), plain(value)))
        .collect()
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(DELETE_FROM)
        || key.starts_with(SET_ORDER)
}
