//! Messages into JSON, by the table of types.

use api::schema::{Field, Struct, Type};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Error;
use super::wire::{Data, Message, WireError};

/// A message of the given type as a JSON object. Fields of unknown number are skipped, as protobuf has it.
pub fn object(ty: &'static Struct, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    for item in Message::new(bytes) {
        let (number, data) = item?;
        let known = ty
            .fields
            .iter()
            .find(|field| field.number != 0 && u64::from(field.number) == number);
        if let Some(field) = known {
            insert(&mut object, field, data)?;
        }
    }
    Ok(object)
}

fn insert(
    object: &mut Map<String, Value>,
    field: &'static Field,
    data: Data<'_>,
) -> Result<(), Error> {
    match &field.ty {
        Type::Struct(inner) if field.inline => object.extend(self::object(inner, data.bytes()?)?),
        Type::List(inner) => {
            let list = object
                .entry(field.name)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                push(list, field, inner, data)?;
            }
        }
        Type::Map(inner) => {
            let map = object
                .entry(field.name)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                let (key, value) = entry(field, inner, data)?;
                map.insert(key, value);
            }
        }
        ty => drop(object.insert(field.name.to_owned(), scalar(field, ty, data)?)),
    }
    Ok(())
}

/// One item of a repeated field, or several packed numbers.
fn push(
    list: &mut Vec<Value>,
    field: &'static Field,
    item: &'static Type,
    data: Data<'_>,
) -> Result<(), Error> {
    match (item, data) {
        (Type::Int32 | Type::Int64 | Type::Bool, Data::Bytes(packed)) => {
            let mut numbers = Message::new(packed);
            while !numbers.is_empty() {
                list.push(scalar(field, item, Data::Varint(numbers.varint()?))?);
            }
        }
        _ => list.push(scalar(field, item, data)?),
    }
    Ok(())
}

fn entry(
    field: &'static Field,
    ty: &'static Type,
    data: Data<'_>,
) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), None);
    for item in Message::new(data.bytes()?) {
        let (number, data) = item?;
        match number {
            1 => key = data.text()?,
            2 => value = Some(scalar(field, ty, data)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => scalar(field, ty, Data::Bytes(&[]))?,
    };
    Ok((key, value))
}

fn scalar(field: &'static Field, ty: &'static Type, data: Data<'_>) -> Result<Value, Error> {
    Ok(match ty {
        Type::String => data.text()?.into(),
        Type::Bool => (data.integer()? != 0).into(),
        Type::Int64 => data.integer()?.into(),
        Type::Int32 => {
            let value = data.integer()?;
            i32::try_from(value)
                .map_err(|_| Error::Range {
                    field: field.name,
                    value,
                })?
                .into()
        }
        Type::Bytes => STANDARD.encode(data.bytes()?).into(),
        Type::Quantity => member(data, 1)?
            .map_or(Ok(String::new()), Data::text)?
            .into(),
        Type::Time | Type::MicroTime => time(field, ty, data)?,
        Type::IntOrString => int_or_string(data)?,
        Type::FieldsV1 | Type::Raw => match member(data, 1)?.map_or(Ok(&[][..]), Data::bytes)? {
            [] => Value::Null,
            json => serde_json::from_slice(json).map_err(|source| Error::Json {
                field: field.name,
                source,
            })?,
        },
        Type::Struct(inner) => Value::Object(object(inner, data.bytes()?)?),
        Type::List(inner) if field.wrapped => {
            let mut list = Vec::new();
            for item in Message::new(data.bytes()?) {
                if let (1, data) = item? {
                    push(&mut list, field, inner, data)?;
                }
            }
            Value::Array(list)
        }
        Type::List(_) | Type::Map(_) => return Err(WireError::Mismatch.into()),
    })
}

/// The last value of a field of a message.
fn member(data: Data<'_>, wanted: u64) -> Result<Option<Data<'_>>, Error> {
    let mut found = None;
    for item in Message::new(data.bytes()?) {
        let (number, data) = item?;
        if number == wanted {
            found = Some(data);
        }
    }
    Ok(found)
}

/// `{seconds, nanos}`; an empty message is no time.
fn time(field: &'static Field, ty: &Type, data: Data<'_>) -> Result<Value, Error> {
    if data.bytes()?.is_empty() {
        return Ok(Value::Null);
    }
    let seconds = member(data, 1)?.map_or(Ok(0), Data::integer)?;
    let nanos = member(data, 2)?.map_or(Ok(0), Data::integer)?;
    let nanos = i32::try_from(nanos).map_err(|_| Error::Range {
        field: field.name,
        value: nanos,
    })?;
    let at = Timestamp::new(seconds, nanos).map_err(|_| Error::Range {
        field: field.name,
        value: seconds,
    })?;
    let text = if matches!(ty, Type::MicroTime) {
        api::time::micros(at)
    } else {
        api::time::seconds(at)
    };
    Ok(text.into())
}

/// `{type, intVal, strVal}`, type 1 for a string.
fn int_or_string(data: Data<'_>) -> Result<Value, Error> {
    let kind = member(data, 1)?.map_or(Ok(0), Data::integer)?;
    Ok(if kind == 1 {
        member(data, 3)?
            .map_or(Ok(String::new()), Data::text)?
            .into()
    } else {
        member(data, 2)?.map_or(Ok(0), Data::integer)?.into()
    })
}
