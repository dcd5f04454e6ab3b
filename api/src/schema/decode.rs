//! JSON into a built-in type's form: types checked, unknown fields dropped and named, zero values as upstream has them.

use serde_json::{Map, Value};

use super::{Field, Omit, Struct, Type};
use crate::quantity::Quantity;

/// A value of the wrong type, worded as upstream's JSON decoder words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    #[error("json: cannot unmarshal {found} into Go struct field {holder}.{path} of type {wanted}")]
    Mismatch {
        found: String,
        holder: String,
        path: String,
        wanted: String,
    },
    #[error("json: cannot unmarshal {found} into Go value of type {wanted}")]
    Root { found: String, wanted: String },
    #[error("{0}")]
    Quantity(#[from] crate::quantity::ParseError),
    #[error("parsing time {found:?} as {layout:?}: cannot parse {found:?}")]
    Time { found: String, layout: &'static str },
    #[error("illegal base64 data in {path}")]
    Base64 { path: String },
}

/// Brings `object` into the form that decoding and encoding it upstream would give: every field of the right type,
/// quantities canonical, nulls and empty values left out or filled in as the type says, fields in their order.
///
/// Returns one message for each unknown field, which is dropped: `unknown field "spec.foo"`.
///
/// # Errors
/// [`TypeError`] for the first value of a wrong type.
pub fn decode(ty: &'static Struct, object: &mut Value) -> Result<Vec<String>, TypeError> {
    let Value::Object(map) = object else {
        let wanted = go_type(&Type::Struct(ty));
        return Err(TypeError::Root {
            found: describe(object),
            wanted,
        });
    };
    let mut walk = Walk {
        path: Vec::new(),
        unknown: Vec::new(),
    };
    *map = walk.object(ty, std::mem::take(map))?;
    Ok(walk.unknown)
}

/// Puts every quantity in `value`, of type `ty`, into its canonical form and leaves everything else as it is; what isn't a
/// quantity stays too.
pub fn canonicalize(ty: &'static Struct, value: &mut Value) {
    for (name, part) in value.as_object_mut().into_iter().flatten() {
        if let Some(field) = ty.field(name) {
            canonicalize_part(&field.ty, part);
        }
    }
}

fn canonicalize_part(ty: &'static Type, value: &mut Value) {
    match (ty, value) {
        (Type::Struct(inner), value) => canonicalize(inner, value),
        (Type::List(inner), Value::Array(list)) => list
            .iter_mut()
            .for_each(|item| canonicalize_part(inner, item)),
        (Type::Map(inner), Value::Object(map)) => map
            .values_mut()
            .for_each(|item| canonicalize_part(inner, item)),
        (Type::Quantity, value) => {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            if let Ok(quantity) = text.parse::<Quantity>() {
                *value = quantity.to_string().into();
            }
        }
        _ => {}
    }
}

enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

struct Walk {
    path: Vec<Step>,
    unknown: Vec<String>,
}

impl Walk {
    fn object(
        &mut self,
        ty: &'static Struct,
        mut from: Map<String, Value>,
    ) -> Result<Map<String, Value>, TypeError> {
        let mut into = Map::with_capacity(from.len());
        let mut fields = Vec::with_capacity(ty.fields.len());
        ty.each_field(&mut |field| fields.push(field));
        for field in fields {
            let value = from.remove(field.name).unwrap_or(Value::Null);
            self.path.push(Step::Field(field.name));
            if let Some(value) = self.field(ty, field, value)? {
                into.insert(field.name.to_owned(), value);
            }
            self.path.pop();
        }
        for name in from.keys() {
            let place = self.dotted(true);
            let dot = if place.is_empty() { "" } else { "." };
            self.unknown
                .push(format!("unknown field \"{place}{dot}{name}\""));
        }
        Ok(into)
    }

    /// The field's value, or `None` if it is left out.
    fn field(
        &mut self,
        holder: &'static Struct,
        field: &'static Field,
        value: Value,
    ) -> Result<Option<Value>, TypeError> {
        if value.is_null() {
            let zero = zero(&field.ty);
            let left_out = field.pointer
                || match field.omit {
                    Omit::Never => false,
                    Omit::Empty => is_empty(&field.ty, &zero),
                    Omit::Zero => true,
                };
            return Ok((!left_out).then_some(zero));
        }
        let value = self.value(holder, &field.ty, value)?;
        let left_out = !field.pointer
            && match field.omit {
                Omit::Never => false,
                Omit::Empty => is_empty(&field.ty, &value),
                Omit::Zero => is_empty(&field.ty, &value) || value == zero(&field.ty),
            };
        Ok((!left_out).then_some(value))
    }

    fn value(
        &mut self,
        holder: &'static Struct,
        ty: &'static Type,
        value: Value,
    ) -> Result<Value, TypeError> {
        let fits = match (ty, &value) {
            (Type::Struct(_) | Type::Map(_), Value::Object(_))
            | (Type::List(_), Value::Array(_)) => {
                return self.nested(holder, ty, value);
            }
            (Type::Quantity, Value::String(text)) => {
                return Ok(text.parse::<Quantity>()?.to_string().into());
            }
            (Type::Quantity, Value::Number(number)) => {
                return Ok(number.to_string().parse::<Quantity>()?.to_string().into());
            }
            (Type::Time | Type::MicroTime, Value::String(text)) => {
                return crate::time::parse(text)
                    .map(|at| time(ty, at).into())
                    .map_err(|_| TypeError::Time {
                        found: text.clone(),
                        layout: "2006-01-02T15:04:05Z07:00",
                    });
            }
            (Type::Bytes, Value::String(text)) => {
                if !is_base64(text) {
                    return Err(TypeError::Base64 {
                        path: self.dotted(false),
                    });
                }
                true
            }
            (Type::String | Type::IntOrString, Value::String(_))
            | (Type::Bool, Value::Bool(_))
            | (Type::Raw | Type::FieldsV1, Value::Object(_)) => true,
            (Type::Int64, Value::Number(n)) => n.is_i64(),
            (Type::Int32 | Type::IntOrString, Value::Number(n)) => {
                n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            _ => false,
        };
        if fits {
            Ok(value)
        } else {
            Err(self.mismatch(holder, ty, &value))
        }
    }

    fn nested(
        &mut self,
        holder: &'static Struct,
        ty: &'static Type,
        value: Value,
    ) -> Result<Value, TypeError> {
        match (ty, value) {
            (Type::Struct(inner), Value::Object(map)) => self.object(inner, map).map(Value::Object),
            (Type::Map(inner), Value::Object(mut map)) => {
                for (key, slot) in &mut map {
                    self.path.push(Step::Key(key.clone()));
                    *slot = self.element(holder, inner, slot.take())?;
                    self.path.pop();
                }
                Ok(Value::Object(map))
            }
            (Type::List(inner), Value::Array(mut list)) => {
                for (index, slot) in list.iter_mut().enumerate() {
                    self.path.push(Step::Index(index));
                    *slot = self.element(holder, inner, slot.take())?;
                    self.path.pop();
                }
                Ok(Value::Array(list))
            }
            (_, value) => Ok(value),
        }
    }

    fn element(
        &mut self,
        holder: &'static Struct,
        ty: &'static Type,
        value: Value,
    ) -> Result<Value, TypeError> {
        match value {
            // Go decodes null into a list's element or a map's value as its zero.
            Value::Null => Ok(zero(ty)),
            value => self.value(holder, ty, value),
        }
    }

    fn mismatch(&self, holder: &'static Struct, ty: &Type, value: &Value) -> TypeError {
        let holder = holder
            .name
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        let found = match (ty, value) {
            // Go shows a number only where another number would do.
            (Type::Int32 | Type::Int64, Value::Number(number)) => format!("number {number}"),
            _ => describe(value),
        };
        TypeError::Mismatch {
            found,
            holder,
            path: self.dotted(false),
            wanted: go_type(ty),
        }
    }

    /// The place that the walk is at. Go's type errors name fields only, not the indexes and keys between them.
    fn dotted(&self, exact: bool) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => push_dotted(&mut text, name),
                Step::Index(index) if exact => text.push_str(&format!("[{index}]")),
                Step::Key(key) if exact => push_dotted(&mut text, key),
                Step::Index(_) | Step::Key(_) => {}
            }
        }
        text
    }
}

fn push_dotted(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('.');
    }
    text.push_str(name);
}

/// The value that Go writes for a type's zero.
fn zero(ty: &'static Type) -> Value {
    match ty {
        Type::String => "".into(),
        Type::Int32 | Type::Int64 | Type::IntOrString => 0.into(),
        Type::Bool => false.into(),
        Type::Quantity => "0".into(),
        Type::Bytes
        | Type::Time
        | Type::MicroTime
        | Type::FieldsV1
        | Type::Raw
        | Type::List(_)
        | Type::Map(_) => Value::Null,
        Type::Struct(inner) => {
            let mut map = Map::new();
            inner.each_field(&mut |field| {
                let zero = if field.pointer {
                    Value::Null
                } else {
                    zero(&field.ty)
                };
                let left_out = match field.omit {
                    Omit::Never => false,
                    Omit::Empty => field.pointer || is_empty(&field.ty, &zero),
                    Omit::Zero => true,
                };
                if !left_out {
                    map.insert(field.name.to_owned(), zero);
                }
            });
            Value::Object(map)
        }
    }
}

/// What Go's `omitempty` leaves out: never a struct, and types that encode themselves are structs.
fn is_empty(ty: &Type, value: &Value) -> bool {
    match ty {
        Type::Struct(_) | Type::Quantity | Type::IntOrString | Type::Time | Type::MicroTime => {
            false
        }
        _ => match value {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Number(n) => n.as_i64() == Some(0),
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
        },
    }
}

fn time(ty: &Type, at: jiff::Timestamp) -> String {
    if matches!(ty, Type::MicroTime) {
        crate::time::micros(at)
    } else {
        crate::time::seconds(at)
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

fn go_type(ty: &Type) -> String {
    match ty {
        Type::String | Type::Bytes => "string".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Bool => "bool".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::FieldsV1 => "v1.FieldsV1".into(),
        Type::Raw => "runtime.RawExtension".into(),
        // `core/v1.PodSpec` -> `v1.PodSpec`
        Type::Struct(inner) => inner
            .name
            .rsplit('/')
            .next()
            .unwrap_or(inner.name)
            .to_owned(),
        Type::List(inner) => format!("[]{}", go_type(inner)),
        Type::Map(inner) => format!("map[string]{}", go_type(inner)),
    }
}

/// Standard alphabet, padded.
fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}
