//! The version 2 document in protobuf (`gnostic openapiv2/OpenAPIv2.proto`): the only form in which client-go reads it.

use serde_json::{Map, Value};

/// The methods of a path item, with their field numbers.
const METHODS: [(&str, u64); 5] = [
    ("get", 2),
    ("put", 3),
    ("post", 4),
    ("delete", 5),
    ("patch", 8),
];

/// Encodes a version 2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| {
        paths.named(2, &document["paths"], path_item);
    });
    out.message(9, |definitions| {
        definitions.named(1, &document["definitions"], schema);
    });
    out.bytes
}

fn path_item(out: &mut Message, item: &Value) {
    for (method, number) in METHODS {
        if let Some(value) = item.get(method) {
            out.message(number, |out| operation(out, value));
        }
    }
    for parameter in items(&item["parameters"]) {
        out.message(9, |out| parameters_item(out, parameter));
    }
}

fn operation(out: &mut Message, operation: &Value) {
    for media_type in items(&operation["consumes"]) {
        out.text(7, media_type);
    }
    for parameter in items(&operation["parameters"]) {
        out.message(8, |out| parameters_item(out, parameter));
    }
    out.message(9, |out| {
        out.named(1, &operation["responses"], |out, response| {
            out.message(1, |out| {
                out.text(1, &response["description"]);
                if let Some(value) = response.get("schema") {
                    out.message(2, |out| out.message(1, |out| schema(out, value)));
                }
            });
        });
    });
    out.extensions(13, operation);
}

/// `ParametersItem{Parameter{BodyParameter | NonBodyParameter{query | path}}}`
fn parameters_item(out: &mut Message, parameter: &Value) {
    out.message(1, |out| match parameter["in"].as_str() {
        Some("body") => out.message(1, |out| {
            out.text(2, &parameter["name"]);
            out.text(3, &parameter["in"]);
            out.message(5, |out| schema(out, &parameter["schema"]));
        }),
        Some("path") => out.message(2, |out| {
            out.message(4, |out| {
                out.flag(1, parameter["required"] == true);
                simple_parameter(out, parameter, 5);
            });
        }),
        _ => out.message(2, |out| {
            out.message(3, |out| simple_parameter(out, parameter, 6))
        }),
    });
}

fn simple_parameter(out: &mut Message, parameter: &Value, type_number: u64) {
    out.text(2, &parameter["in"]);
    out.text(4, &parameter["name"]);
    out.text(type_number, &parameter["type"]);
}

fn schema(out: &mut Message, schema: &Value) {
    out.text(1, &schema["$ref"]);
    out.text(2, &schema["format"]);
    out.text(4, &schema["description"]);
    for name in items(&schema["required"]) {
        out.text(19, name);
    }
    match &schema["additionalProperties"] {
        Value::Null => {}
        Value::Bool(allowed) => out.message(21, |out| out.flag(2, *allowed)),
        value => out.message(21, |out| out.message(1, |out| self::schema(out, value))),
    }
    if schema["type"].is_string() {
        out.message(22, |out| out.text(1, &schema["type"]));
    }
    if schema["items"].is_object() {
        out.message(23, |out| {
            out.message(1, |out| self::schema(out, &schema["items"]))
        });
    }
    if schema["properties"].is_object() {
        out.message(25, |out| out.named(1, &schema["properties"], self::schema));
    }
    out.extensions(31, schema);
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A protobuf message being written.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn data(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// A string; none if the value isn't one.
    fn text(&mut self, number: u64, value: &Value) {
        if let Some(text) = value.as_str() {
            self.data(number, text.as_bytes());
        }
    }

    fn flag(&mut self, number: u64, value: bool) {
        self.varint(number << 3);
        self.varint(value.into());
    }

    fn message(&mut self, number: u64, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.data(number, &inner.bytes);
    }

    /// A map as `{name, value}` pairs.
    fn named(&mut self, number: u64, map: &Value, write: impl Fn(&mut Message, &Value)) {
        for (name, value) in map.as_object().into_iter().flat_map(Map::iter) {
            self.message(number, |pair| {
                pair.data(1, name.as_bytes());
                pair.message(2, |out| write(out, value));
            });
        }
    }

    /// The fields that begin with `x-`, each as YAML, which JSON is.
    fn extensions(&mut self, number: u64, object: &Value) {
        let extensions = object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.starts_with("x-"));
        for (name, value) in extensions {
            self.message(number, |pair| {
                pair.data(1, name.as_bytes());
                pair.message(2, |any| any.data(2, value.to_string().as_bytes()));
            });
        }
    }
}
