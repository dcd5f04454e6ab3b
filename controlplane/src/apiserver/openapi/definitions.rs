//! The types of a document.

use api::schema::{Field, Struct, Topology};
use k8s_openapi::api::{
    apps::v1 as apps, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, networking::v1 as networking, node::v1 as node, rbac::v1 as rbac,
    storage::v1 as storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, Patch, Status};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::super::kind::Kind;
use super::{Form, group_version_kind};

/// Adds a kind's type and all that it refers to.
type Add = fn(&mut SchemaGenerator);

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// The Rust type behind each name of [`api::schema`] that is a kind.
const TYPES: &[(&str, Add)] = &[
    ("core/v1.ConfigMap", add::<core::ConfigMap>),
    ("core/v1.Endpoints", add::<core::Endpoints>),
    ("core/v1.Event", add::<core::Event>),
    ("core/v1.Namespace", add::<core::Namespace>),
    ("core/v1.Node", add::<core::Node>),
    ("core/v1.Pod", add::<core::Pod>),
    ("core/v1.Secret", add::<core::Secret>),
    ("core/v1.ServiceAccount", add::<core::ServiceAccount>),
    ("core/v1.Service", add::<core::Service>),
    ("apps/v1.Deployment", add::<apps::Deployment>),
    ("apps/v1.ReplicaSet", add::<apps::ReplicaSet>),
    ("coordination/v1.Lease", add::<coordination::Lease>),
    (
        "discovery/v1.EndpointSlice",
        add::<discovery::EndpointSlice>,
    ),
    (
        "networking/v1.NetworkPolicy",
        add::<networking::NetworkPolicy>,
    ),
    ("node/v1.RuntimeClass", add::<node::RuntimeClass>),
    ("storage/v1.CSIDriver", add::<storage::CSIDriver>),
    ("storage/v1.CSINode", add::<storage::CSINode>),
    ("rbac/v1.Role", add::<rbac::Role>),
    ("rbac/v1.ClusterRole", add::<rbac::ClusterRole>),
    ("rbac/v1.RoleBinding", add::<rbac::RoleBinding>),
    (
        "rbac/v1.ClusterRoleBinding",
        add::<rbac::ClusterRoleBinding>,
    ),
];

/// Every type that the kinds use, by its full name.
pub fn of(kinds: &[&Kind], form: Form) -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.definitions_path = form.types().into();
        s.transforms.clear();
    });
    let mut generator = settings.into_generator();
    for kind in kinds {
        if let Some((_, add)) = TYPES.iter().find(|(schema, _)| *schema == kind.schema) {
            add(&mut generator);
        }
    }
    generator.subschema_for::<DeleteOptions>();
    generator.subschema_for::<ListMeta>();
    generator.subschema_for::<Patch>();
    generator.subschema_for::<Status>();
    let mut definitions = generator.take_definitions(false);
    for kind in kinds {
        let list = list_type(kind, &definitions, form);
        definitions.insert(format!("{}List", full_name(kind.schema)), list);
    }
    for (name, definition) in &mut definitions {
        if form == Form::V3 {
            wrap_references(definition);
        }
        annotate(name, definition, form);
    }
    for kind in kinds {
        let name = full_name(kind.schema);
        for (name, kind_name) in [
            (name.clone(), kind.kind.to_owned()),
            (format!("{name}List"), format!("{}List", kind.kind)),
        ] {
            if let Some(definition) = definitions.get_mut(&name) {
                // Upstream requires metadata of no kind; a generated name may be in the request's options.
                if let Some(required) = definition.get_mut("required").and_then(Value::as_array_mut)
                {
                    required.retain(|field| field != "metadata");
                }
                definition["x-kubernetes-group-version-kind"] =
                    json!([group_version_kind(kind, &kind_name)]);
            }
        }
    }
    definitions
}

/// The type of a kind's list: k8s-openapi has one type for all lists, which has no name of its own.
fn list_type(kind: &Kind, definitions: &Map<String, Value>, form: Form) -> Value {
    let own = definitions
        .get(&full_name(kind.schema))
        .map_or(&Value::Null, |definition| &definition["properties"]);
    let refer = |name: &str| json!({"$ref": format!("#{}/{name}", form.types())});
    json!({
        "description": format!("{}List is a list of {} objects.", kind.kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": own["apiVersion"],
            "items": {"description": "The objects of the list.", "type": "array", "items": refer(&full_name(kind.schema))},
            "kind": own["kind"],
            "metadata": refer("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
        },
    })
}

/// `core/v1.Pod` -> `io.k8s.api.core.v1.Pod`
pub fn full_name(schema: &str) -> String {
    let dotted = schema.replace('/', ".");
    match dotted.strip_prefix("meta.") {
        Some(rest) => format!("io.k8s.apimachinery.pkg.apis.meta.{rest}"),
        None => format!("io.k8s.api.{dotted}"),
    }
}

/// The reverse of [`full_name`], for names of the types in our tables.
fn table_name(full: &str) -> Option<String> {
    let rest = full
        .strip_prefix("io.k8s.api.")
        .or_else(|| full.strip_prefix("io.k8s.apimachinery.pkg.apis."))?;
    Some(rest.replacen('.', "/", 1))
}

/// In OpenAPI 3 a `$ref` hides what stands beside it, so upstream wraps it: `{"allOf": [{"$ref": …}], "default": {}}`.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if key != "allOf" {
                    wrap_references(value);
                }
            }
            if let Some(reference) = map.shift_remove("$ref") {
                map.insert("allOf".into(), json!([{"$ref": reference}]));
                map.insert("default".into(), json!({}));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

/// Adds what k8s-openapi's schemas don't say.
fn annotate(name: &str, definition: &mut Value, form: Form) {
    match name.rsplit('.').next() {
        Some("IntOrString") => {
            replace_type(definition, "int-or-string", &["integer", "string"], form)
        }
        Some("Quantity") => replace_type(definition, "", &["string", "number"], form),
        _ => {}
    }
    let Some(ty) = table_name(name).and_then(|name| Struct::find(&name)) else {
        return;
    };
    if ty.atomic {
        definition["x-kubernetes-map-type"] = "atomic".into();
    }
    let Some(properties) = definition
        .get_mut("properties")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    ty.each_field(&mut |field| {
        if let Some(property) = properties.get_mut(field.name) {
            annotate_field(field, property);
        }
    });
}

fn annotate_field(field: &Field, property: &mut Value) {
    let list = property["type"] == "array";
    match field.topology {
        Topology::Map(keys) => {
            property["x-kubernetes-list-type"] = "map".into();
            property["x-kubernetes-list-map-keys"] = json!(keys);
        }
        Topology::Set => property["x-kubernetes-list-type"] = "set".into(),
        Topology::Atomic if !list => property["x-kubernetes-map-type"] = "atomic".into(),
        Topology::Default if list => property["x-kubernetes-list-type"] = "atomic".into(),
        _ => {}
    }
    if let Some(patch) = field.patch {
        let strategies = [(patch.merge, "merge"), (patch.retain_keys, "retainKeys")];
        let named: Vec<&str> = strategies
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| *name)
            .collect();
        property["x-kubernetes-patch-strategy"] = named.join(",").into();
        if let Some(key) = patch.key {
            property["x-kubernetes-patch-merge-key"] = key.into();
        }
    }
}

/// A type that is one of several in JSON: version 3 can say so, version 2 says it is a string.
fn replace_type(definition: &mut Value, format: &str, types: &[&str], form: Form) {
    let Some(map) = definition.as_object_mut() else {
        return;
    };
    map.shift_remove("x-kubernetes-int-or-string");
    if !format.is_empty() {
        map.insert("format".into(), format.into());
    }
    match form {
        Form::V2 => drop(map.insert("type".into(), "string".into())),
        Form::V3 => {
            let types: Vec<Value> = types.iter().map(|ty| json!({"type": ty})).collect();
            map.insert("oneOf".into(), types.into());
        }
    }
}
