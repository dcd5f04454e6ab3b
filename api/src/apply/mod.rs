//! Server-side apply: who manages which field, and what applying a configuration makes of an object
//! (`sigs.k8s.io/structured-merge-diff/merge`, `managedFields` in `metav1.ObjectMeta`).
//!
//! Every write is recorded. An update makes its manager an owner of what it changed and takes that from others; an
//! apply makes its manager own exactly what its configuration states, fails if that changes what somebody else owns
//! (unless forced), and removes what it stated before, states no more, and nobody else owns.

mod set;
#[cfg(test)]
mod tests;
mod typed;

use serde_json::{Map, Value, json};

use self::set::{Element, Set};
use self::typed::{Shape, compare, field_set, merge, remove};
use crate::object::{list, text};
use crate::schema::{Struct, canonicalize, decode};

/// Fields that nobody owns: the server sets them.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "resourceVersion"],
    &["metadata", "managedFields"],
];

/// Who writes, and through what.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// `fieldManager` of the request.
    pub name: &'a str,
    /// `apps/v1`: the version that the request is in.
    pub api_version: &'a str,
    /// `""` or `status`, `scale`, …
    pub subresource: &'a str,
    /// Top-level fields that this write can't change (`status` through the main resource): nobody comes to own them by it.
    pub ignored: &'a [&'a str],
    /// RFC 3339 time of the write.
    pub time: &'a str,
}

/// Fields that an apply would change and that others own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    /// `("kubectl" using apps/v1, .spec.replicas)`, sorted by manager.
    pub fields: Vec<(String, String)>,
}

impl std::fmt::Display for Conflicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [(manager, field)] = self.fields.as_slice() {
            return write!(
                f,
                "Apply failed with 1 conflict: conflict with {manager}: {field}"
            );
        }
        write!(f, "Apply failed with {} conflicts: ", self.fields.len())?;
        let mut last = None;
        for (manager, field) in &self.fields {
            if last != Some(manager) {
                let new_line = if last.is_some() { "\n" } else { "" };
                write!(f, "{new_line}conflicts with {manager}:")?;
                last = Some(manager);
            }
            write!(f, "\n- {field}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Conflicts {}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: &'static str,
    api_version: String,
    subresource: String,
    time: String,
    fields: Set,
}

impl Entry {
    fn read(value: &Value) -> Self {
        Self {
            manager: text(value, "/manager").to_owned(),
            operation: if value["operation"] == "Apply" {
                "Apply"
            } else {
                "Update"
            },
            api_version: text(value, "/apiVersion").to_owned(),
            subresource: text(value, "/subresource").to_owned(),
            time: text(value, "/time").to_owned(),
            fields: Set::from_fields_v1(&value["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_fields_v1(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }

    /// Whether a write of this manager and operation continues this entry.
    fn is_of(&self, manager: &Manager<'_>, operation: &str) -> bool {
        self.manager == manager.name
            && self.operation == operation
            && self.subresource == manager.subresource
            // Of an applier there is one entry, whatever version it applies in.
            && (operation == "Apply" || self.api_version == manager.api_version)
    }

    /// As a conflict names it.
    fn described(&self) -> String {
        let through = match self.subresource.as_str() {
            "" => String::new(),
            subresource => format!(" with subresource {subresource:?}"),
        };
        match self.operation {
            "Apply" => format!("{:?}{through}", self.manager),
            _ => format!("{:?}{through} using {}", self.manager, self.api_version),
        }
    }
}

fn read_entries(object: &Value) -> Vec<Entry> {
    list(object, "/metadata/managedFields")
        .iter()
        .map(Entry::read)
        .collect()
}

fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    // Appliers first, then by time: upstream's order.
    entries.sort_by(|a, b| {
        (a.operation, &a.time, &a.manager).cmp(&(b.operation, &b.time, &b.manager))
    });
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if entries.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert(
            "managedFields".into(),
            entries.iter().map(Entry::to_json).collect(),
        );
    }
}

fn owned(mut set: Set, manager: &Manager<'_>) -> Set {
    for path in UNOWNED {
        set.remove_under(path);
    }
    for field in manager.ignored {
        set.remove_under(&[field]);
    }
    if let Some(metadata) = set.children.get_mut(&Element::Field("metadata".into())) {
        metadata.member = false;
    }
    if set
        .children
        .get(&Element::Field("metadata".into()))
        .is_some_and(Set::is_empty)
    {
        set.children.remove(&Element::Field("metadata".into()));
    }
    set.member = false;
    set
}

/// The object of the type that states nothing: what a created object is compared with.
fn zero(ty: &'static Struct) -> Value {
    let mut object = Value::Object(Map::new());
    // An empty object has no value of a wrong type.
    let _ = decode(ty, &mut object);
    object
}

/// Records a create (`old` is null), update or patch in `new`'s managed fields: its manager owns what changed.
///
/// A write of the main resource may itself change the record, as `kubectl apply --server-side` does to take over from
/// client-side apply; `[{}]` forgets it, no entries leave it as it is.
pub fn record_update(ty: &'static Struct, new: &mut Value, old: &Value, manager: &Manager<'_>) {
    let given = list(new, "/metadata/managedFields");
    let forgets = matches!(given, [Value::Object(only)] if only.is_empty());
    let mut entries = match given {
        _ if forgets => Vec::new(),
        [] => read_entries(old),
        _ if !manager.subresource.is_empty() => read_entries(old),
        _ => read_entries(new),
    };
    let shape = Shape::Struct(ty);
    let empty;
    let old = if old.is_null() {
        empty = zero(ty);
        &empty
    } else {
        old
    };
    let difference = compare(shape, Some(old), Some(new));
    let gained = owned(difference.added.union(&difference.modified), manager);
    take(&mut entries, &gained, &difference.removed, |entry| {
        entry.is_of(manager, "Update")
    });
    if !gained.is_empty() {
        own(&mut entries, gained, manager);
    }
    write_entries(new, entries);
}

fn own(entries: &mut Vec<Entry>, gained: Set, manager: &Manager<'_>) {
    match entries
        .iter_mut()
        .find(|entry| entry.is_of(manager, "Update"))
    {
        Some(entry) => {
            entry.fields = entry.fields.union(&gained);
            entry.time = manager.time.to_owned();
        }
        None => entries.push(entry(manager, "Update", gained)),
    }
}

fn entry(manager: &Manager<'_>, operation: &'static str, fields: Set) -> Entry {
    Entry {
        manager: manager.name.to_owned(),
        operation,
        api_version: manager.api_version.to_owned(),
        subresource: manager.subresource.to_owned(),
        time: manager.time.to_owned(),
        fields,
    }
}

/// What somebody else changed or removed is no longer an entry's.
fn take(entries: &mut [Entry], changed: &Set, removed: &Set, is_mine: impl Fn(&Entry) -> bool) {
    for entry in entries {
        if !is_mine(entry) {
            entry.fields = entry.fields.difference(changed);
        }
        entry.fields = entry.fields.difference(removed);
    }
}

/// Applies a configuration to the live object (null if there is none yet) and returns the result, managed fields
/// included. Defaults are for the caller to fill in, and to record as nobody's.
///
/// # Errors
/// [`Conflicts`] if the result changes what another manager owns and `force` is not set.
pub fn apply(
    ty: &'static Struct,
    live: &Value,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Value, Conflicts> {
    let shape = Shape::Struct(ty);
    let mut config = writable(config, manager);
    // Otherwise a limit of `1000m` would differ from the stored `1`.
    canonicalize(ty, &mut config);
    let mut entries = read_entries(live);
    if entries.is_empty() && !live.is_null() {
        // What was written before anything was recorded belongs to somebody all the same.
        let first = Manager {
            name: "before-first-apply",
            ignored: &[],
            ..*manager
        };
        entries.push(entry(
            &first,
            "Update",
            owned(field_set(shape, live), &first),
        ));
    }
    let stated = owned(field_set(shape, &config), manager);
    let mine = entries
        .iter()
        .position(|entry| entry.is_of(manager, "Apply"));
    let before = mine
        .map(|index| entries[index].fields.clone())
        .unwrap_or_default();
    let others = || {
        entries
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != mine)
            .map(|(_, entry)| entry)
    };

    let merged = merge(shape, Some(live), &config);
    let kept = others().fold(stated.clone(), |all, entry| all.union(&entry.fields));
    let mut result =
        remove(shape, &merged, &before.difference(&kept), Some(&kept)).unwrap_or(merged);

    let difference = compare(shape, Some(live), Some(&result));
    let changed = owned(difference.added.union(&difference.modified), manager);
    if !force {
        let mut fields: Vec<(String, String)> = Vec::new();
        for entry in others() {
            let lost = entry.fields.intersection(&changed).paths();
            fields.extend(lost.into_iter().map(|path| (entry.described(), path)));
        }
        fields.sort();
        if !fields.is_empty() {
            return Err(Conflicts { fields });
        }
    }
    let unchanged = changed.is_empty() && difference.removed.is_empty() && before == stated;
    take(&mut entries, &changed, &difference.removed, |entry| {
        entry.is_of(manager, "Apply")
    });
    match mine {
        Some(index) if unchanged => entries[index].fields = stated,
        Some(index) => entries[index] = entry(manager, "Apply", stated),
        None => entries.push(entry(manager, "Apply", stated)),
    }
    write_entries(&mut result, entries);
    Ok(result)
}

/// The configuration without what this write can't change.
fn writable(config: &Value, manager: &Manager<'_>) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        for field in manager.ignored {
            map.shift_remove(*field);
        }
    }
    config
}
