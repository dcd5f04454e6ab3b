//! Network configuration lists (CNI 1.1 §1).

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Error;

/// The versions that this runtime speaks, oldest first.
const SUPPORTED: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// A network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfList {
    /// The network's name.
    pub name: String,
    /// The version that its plugins are called with.
    pub cni_version: String,
    /// CHECK is not to be run.
    pub disable_check: bool,
    /// GC is not to be run.
    pub disable_gc: bool,
    /// The plugins in the order of ADD.
    pub plugins: Vec<PluginConf>,
    /// The whole list, as read.
    pub raw: Value,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// Its type: the name of the plugin's program.
    pub plugin: String,
    /// Its configuration, as read.
    pub raw: Map<String, Value>,
}

/// The first configuration by name in `dir`: a `.conflist`, or a single plugin's `.conf` or `.json`.
pub(super) fn load_first(dir: &Path) -> Result<ConfList, Error> {
    let Some(path) = first_file(dir)? else {
        return Err(Error::NotConfigured {
            dir: dir.to_owned(),
        });
    };
    let bytes = std::fs::read(&path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|cause| config_error(&path, cause))?;
    ConfList::parse(&value, &path)
}

/// The first configuration by name in `dir`.
pub(super) fn first_file(dir: &Path) -> Result<Option<PathBuf>, Error> {
    let read_error = |source| Error::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(read_error(cause)),
    };
    let mut first: Option<PathBuf> = None;
    for entry in entries {
        let path = entry.map_err(read_error)?.path();
        let is_config = path
            .extension()
            .is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
        if is_config && path.is_file() && first.as_ref().is_none_or(|f| path < *f) {
            first = Some(path);
        }
    }
    Ok(first)
}

impl ConfList {
    /// Reads a list, or a single plugin's configuration as a list of one; `path` is named in errors.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn parse(value: &Value, path: &Path) -> Result<Self, Error> {
        let Some(object) = value.as_object() else {
            return Err(config_error(path, "not a JSON object"));
        };
        let whole;
        let object = if object.contains_key("plugins") {
            object
        } else {
            whole = wrap_single(object);
            &whole
        };
        let name = string(object, "name").unwrap_or_default();
        if !valid_name(name) {
            return Err(config_error(
                path,
                format!("name: {name:?} is not a valid network name"),
            ));
        }
        let entries = object
            .get("plugins")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if entries.is_empty() {
            return Err(config_error(path, "plugins: no plugin"));
        }
        let plugins = entries
            .iter()
            .enumerate()
            .map(|(i, entry)| plugin_conf(i, entry, path))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name: name.to_owned(),
            cni_version: choose_version(object).map_err(|reason| config_error(path, reason))?,
            disable_check: flag(object, "disableCheck", path)?,
            disable_gc: flag(object, "disableGC", path)?,
            plugins,
            raw: value.clone(),
        })
    }

    /// Whether the plugins are called with `version` or a later one.
    pub(super) fn at_least(&self, version: &str) -> bool {
        rank(&self.cni_version) >= rank(version)
    }
}

fn wrap_single(conf: &Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = conf.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    let plugins = if conf.contains_key("type") {
        json!([conf])
    } else {
        json!([])
    };
    list.insert("plugins".to_owned(), plugins);
    list
}

fn plugin_conf(index: usize, entry: &Value, path: &Path) -> Result<PluginConf, Error> {
    let conf = entry
        .as_object()
        .ok_or_else(|| config_error(path, format!("plugins[{index}]: not an object")))?;
    let plugin = string(conf, "type").unwrap_or_default();
    if plugin.is_empty() || plugin.contains('/') {
        let reason = format!("plugins[{index}].type: {plugin:?} is not a plugin's name");
        return Err(config_error(path, reason));
    }
    Ok(PluginConf {
        plugin: plugin.to_owned(),
        raw: conf.clone(),
    })
}

/// The newest version of `cniVersion` and `cniVersions` that is spoken here. None stated means 0.1.0.
fn choose_version(object: &Map<String, Value>) -> Result<String, String> {
    let stated = string(object, "cniVersion").filter(|v| !v.is_empty());
    let offered = object
        .get("cniVersions")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let all: Vec<&str> = stated
        .into_iter()
        .chain(offered.iter().filter_map(Value::as_str))
        .collect();
    if all.is_empty() {
        return Ok("0.1.0".to_owned());
    }
    match all
        .iter()
        .filter(|v| rank(v).is_some())
        .max_by_key(|v| rank(v))
    {
        Some(version) => Ok((*version).to_owned()),
        None => Err(format!(
            "cniVersion: {} not supported, {} are",
            all.join(", "),
            SUPPORTED.join(", ")
        )),
    }
}

fn rank(version: &str) -> Option<usize> {
    SUPPORTED.iter().position(|v| *v == version)
}

fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// A flag may be written as a string, as upstream accepts.
fn flag(object: &Map<String, Value>, key: &str, path: &Path) -> Result<bool, Error> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(config_error(
            path,
            format!("{key}: {other} is not a boolean"),
        )),
    }
}

/// CNI 1.1 §1: starts alphanumeric, then alphanumerics, `_`, `.`, `-`.
fn valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn config_error(path: &Path, reason: impl ToString) -> Error {
    Error::Config {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
