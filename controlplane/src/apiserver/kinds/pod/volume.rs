//! Rules for a pod's volumes.

use api::field::{FieldError, Path};
use api::names;
use api::object::{list, number, text};
use serde_json::Value;

use super::super::meta::{Errors, invalid, one_of};
use super::container::{field_path, local_path};

const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
/// Fields that a downward API file may show, besides what an environment variable may.
const FILE_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Checks every volume and returns their names.
pub fn validate_all<'a>(errors: &mut Errors, volumes: &'a [Value], at: &Path) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::with_capacity(volumes.len());
    for (index, volume) in volumes.iter().enumerate() {
        let at = at.index(index);
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(at.child("name"), ""));
        } else {
            invalid(errors, &at.child("name"), name, names::dns1123_label(name));
        }
        if names.contains(&name) {
            errors.push(FieldError::duplicate(at.child("name"), name));
        }
        names.push(name);
        validate(errors, volume, &at);
    }
    names
}

fn validate(errors: &mut Errors, volume: &Value, at: &Path) {
    let sources = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "name");
    for (position, (kind, source)) in sources.enumerate() {
        let at = at.child(kind);
        if position > 0 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        match kind.as_str() {
            "emptyDir" => validate_empty_dir(errors, source, &at),
            "hostPath" => validate_host_path(errors, source, &at),
            "secret" => {
                required(errors, source, "secretName", &at);
                validate_items(errors, source, &at);
            }
            "configMap" => {
                required(errors, source, "name", &at);
                validate_items(errors, source, &at);
            }
            "downwardAPI" => validate_downward(errors, source, &at),
            "projected" => validate_projected(errors, source, &at),
            "persistentVolumeClaim" => required(errors, source, "claimName", &at),
            "nfs" => {
                required(errors, source, "server", &at);
                required(errors, source, "path", &at);
            }
            _ => {}
        }
    }
    if volume
        .as_object()
        .is_some_and(|v| v.keys().all(|key| key == "name"))
    {
        errors.push(FieldError::required(at, "must specify a volume type"));
    }
}

fn required(errors: &mut Errors, source: &Value, field: &str, at: &Path) {
    if text(source, &format!("/{field}")).is_empty() {
        errors.push(FieldError::required(at.child(field), ""));
    }
}

fn validate_empty_dir(errors: &mut Errors, source: &Value, at: &Path) {
    let medium = text(source, "/medium");
    if !medium.is_empty() && medium != "Memory" && !medium.starts_with("HugePages") {
        one_of(
            errors,
            medium,
            &["", "HugePages", "HugePages-<size>", "Memory"],
            &at.child("medium"),
        );
    }
    let limit = text(source, "/sizeLimit");
    if limit
        .parse::<api::quantity::Quantity>()
        .is_ok_and(api::quantity::Quantity::is_negative)
    {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(at.child("sizeLimit"), detail));
    }
}

fn validate_host_path(errors: &mut Errors, source: &Value, at: &Path) {
    let path = text(source, "/path");
    if path.is_empty() {
        errors.push(FieldError::required(at.child("path"), ""));
    } else if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(
            at.child("path"),
            path,
            "must not contain '..'",
        ));
    }
    one_of(
        errors,
        text(source, "/type"),
        HOST_PATH_TYPES,
        &at.child("type"),
    );
}

fn validate_mode(errors: &mut Errors, source: &Value, field: &str, at: &Path) {
    if let Some(mode) = number(source, &format!("/{field}"))
        && !(0..=0o777).contains(&mode)
    {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(at.child(field), mode, detail));
    }
}

/// The files that keys become.
fn validate_items(errors: &mut Errors, source: &Value, at: &Path) {
    validate_mode(errors, source, "defaultMode", at);
    for (index, item) in list(source, "/items").iter().enumerate() {
        let at = at.child("items").index(index);
        required(errors, item, "key", &at);
        validate_file_path(errors, text(item, "/path"), &at);
        validate_mode(errors, item, "mode", &at);
    }
}

fn validate_file_path(errors: &mut Errors, path: &str, at: &Path) {
    let at = at.child("path");
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    local_path(errors, path, &at);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        errors.push(FieldError::invalid(at, path, "must not start with '..'"));
    }
}

fn validate_downward(errors: &mut Errors, source: &Value, at: &Path) {
    validate_mode(errors, source, "defaultMode", at);
    for (index, item) in list(source, "/items").iter().enumerate() {
        let at = at.child("items").index(index);
        validate_file_path(errors, text(item, "/path"), &at);
        validate_mode(errors, item, "mode", &at);
        let (field, resource) = (&item["fieldRef"], &item["resourceFieldRef"]);
        match (field.is_object(), resource.is_object()) {
            (true, true) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&at, "resource", detail));
            }
            (true, false) => field_path(errors, field, FILE_FIELDS, &at.child("fieldRef")),
            (false, true) => {
                let at = at.child("resourceFieldRef");
                required(errors, resource, "containerName", &at);
                required(errors, resource, "resource", &at);
            }
            (false, false) => {
                errors.push(FieldError::required(
                    &at,
                    "one of fieldRef and resourceFieldRef is required",
                ));
            }
        }
    }
}

fn validate_projected(errors: &mut Errors, source: &Value, at: &Path) {
    validate_mode(errors, source, "defaultMode", at);
    for (index, part) in list(source, "/sources").iter().enumerate() {
        let at = at.child("sources").index(index);
        let kinds: Vec<&String> = part
            .as_object()
            .into_iter()
            .flat_map(|o| o.keys())
            .collect();
        match kinds.as_slice() {
            [] => errors.push(FieldError::required(&at, "must specify a volume source")),
            [_] => {}
            _ => errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 volume type per source",
            )),
        }
        for (kind, source) in part.as_object().into_iter().flatten() {
            let at = at.child(kind);
            match kind.as_str() {
                "secret" | "configMap" => {
                    required(errors, source, "name", &at);
                    validate_items(errors, source, &at);
                }
                "downwardAPI" => validate_downward(errors, source, &at),
                "serviceAccountToken" => {
                    let seconds = number(source, "/expirationSeconds").unwrap_or_default();
                    if seconds < 600 {
                        let detail = "may not specify a duration less than 10 minutes";
                        errors.push(FieldError::invalid(
                            at.child("expirationSeconds"),
                            seconds,
                            detail,
                        ));
                    }
                    validate_file_path(errors, text(source, "/path"), &at);
                }
                _ => {}
            }
        }
    }
}
