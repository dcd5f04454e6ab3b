use serde_json::Value;

use super::super::kinds::kinds;
use super::super::protobuf::wire::Message;
use super::{v2_document, v2_protobuf, v3_document, v3_index};

/// Every `$ref` in a document.
fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}

fn assert_closed(document: &Value) {
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
}

#[test]
fn every_group_version_of_the_index_has_a_document_whose_references_hold() {
    let index = v3_index();
    let paths = index["paths"].as_object().expect("paths");
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    for path in paths.keys() {
        assert_closed(&v3_document(path).expect("a document"));
    }
    assert!(v3_document("apis/none/v1").is_none());
    assert_closed(&v2_document());
}

#[test]
fn every_kind_has_a_type_that_names_it() {
    let document = v2_document();
    for kind in kinds() {
        let definition = &document["definitions"][super::definitions::full_name(kind.schema)];
        assert_eq!(
            definition["x-kubernetes-group-version-kind"][0]["kind"],
            kind.kind
        );
    }
}

#[test]
fn kubectl_finds_field_validation_and_merge_keys() {
    let document = v3_document("api/v1").expect("a document");
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    let named = |p: &Value| p["name"] == "fieldValidation" && p["in"] == "query";
    assert!(
        patch["parameters"]
            .as_array()
            .expect("parameters")
            .iter()
            .any(named)
    );
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(
        spec["containers"]["items"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.Container"
    );
    assert!(
        spec["containers"]["description"]
            .as_str()
            .is_some_and(|d| d.starts_with("List of containers"))
    );
}

/// The content of every field of this number in a protobuf message.
fn fields(bytes: &[u8], wanted: u64) -> Vec<&[u8]> {
    let all = Message::new(bytes).map(|field| field.expect("well-formed"));
    all.filter(|(number, _)| *number == wanted)
        .map(|(_, data)| data.bytes().expect("bytes"))
        .collect()
}

#[test]
fn the_protobuf_form_says_the_same() {
    let document = v2_document();
    let bytes = v2_protobuf();
    let definitions = fields(fields(&bytes, 9)[0], 1);
    assert_eq!(
        definitions.len(),
        document["definitions"]
            .as_object()
            .expect("definitions")
            .len()
    );
    let pod = definitions
        .iter()
        .find(|d| fields(d, 1) == [b"io.k8s.api.core.v1.Pod"])
        .expect("the pod's type");
    let schema = fields(pod, 2)[0];
    let description = document["definitions"]["io.k8s.api.core.v1.Pod"]["description"]
        .as_str()
        .expect("a description");
    assert_eq!(fields(schema, 4), [description.as_bytes()]);
    assert_eq!(fields(fields(schema, 22)[0], 1), [b"object"]);
    let properties = fields(fields(schema, 25)[0], 1);
    assert!(properties.iter().any(|p| fields(p, 1) == [b"spec"]));
    let extensions: Vec<&[u8]> = fields(schema, 31)
        .into_iter()
        .flat_map(|e| fields(e, 1))
        .collect();
    assert_eq!(extensions, [b"x-kubernetes-group-version-kind"]);
    assert_eq!(
        fields(fields(&bytes, 8)[0], 2).len(),
        document["paths"].as_object().expect("paths").len()
    );
}
