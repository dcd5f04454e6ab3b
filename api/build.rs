//! Turns the tables of `src/schema/tables/` into static data, so that looking at a type costs no heap and no parsing.
//! The form of the tables is told in `src/schema/mod.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let tables = Path::new("src/schema/tables");
    println!("cargo::rerun-if-changed={}", tables.display());
    let mut structs: BTreeMap<String, (bool, Vec<String>)> = BTreeMap::new();
    for entry in fs::read_dir(tables).expect("read the tables' folder") {
        let path = entry.expect("read the tables' folder").path();
        let package = path
            .file_stem()
            .expect("a file")
            .to_string_lossy()
            .replacen('.', "/", 1);
        read_table(
            &package,
            &fs::read_to_string(&path).expect("read a table"),
            &mut structs,
        );
    }
    let mut out = String::new();
    for (name, (atomic, fields)) in &structs {
        let ident = ident(name);
        writeln!(
            out,
            "pub static {ident}: Struct = Struct {{ name: {name:?}, atomic: {atomic}, fields: &["
        )
        .unwrap();
        for field in fields {
            writeln!(out, "    {field},").unwrap();
        }
        writeln!(out, "] }};").unwrap();
    }
    // Sorted by name, for a binary search.
    writeln!(out, "pub static ALL: &[&Struct] = &[").unwrap();
    for name in structs.keys() {
        writeln!(out, "    &{},", ident(name)).unwrap();
    }
    writeln!(out, "];").unwrap();
    fs::write(
        Path::new(&env::var("OUT_DIR").unwrap()).join("schema_tables.rs"),
        out,
    )
    .expect("write the tables");
}

fn ident(name: &str) -> String {
    name.replace(['/', '.'], "_").to_uppercase()
}

fn read_table(package: &str, text: &str, structs: &mut BTreeMap<String, (bool, Vec<String>)>) {
    let mut current = String::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        if let Some(field) = line.strip_prefix(' ') {
            let fields = &mut structs
                .get_mut(&current)
                .expect("a type before its fields")
                .1;
            fields.push(field_source(package, field));
        } else {
            let (name, atomic) = line
                .split_once(' ')
                .map_or((line, false), |(n, a)| (n, a == "atomic"));
            current = format!("{package}.{name}");
            structs.insert(current.clone(), (atomic, Vec::new()));
        }
    }
}

fn field_source(package: &str, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let [number, name, kind, flags @ ..] = words.as_slice() else {
        panic!("not a field: {line}")
    };
    let (pointer, kind) = kind.strip_prefix('*').map_or((false, *kind), |k| (true, k));
    let mut omit = "Omit::Never";
    let (mut topology, mut patch, mut default, mut wrapped) = (
        String::from("Topology::Default"),
        String::from("None"),
        String::from("None"),
        false,
    );
    for flag in flags {
        match flag.split_once('=') {
            None if *flag == "?" => omit = "Omit::Empty",
            None if *flag == "?z" => omit = "Omit::Zero",
            None if *flag == "set" => topology = "Topology::Set".into(),
            None if *flag == "atomic" => topology = "Topology::Atomic".into(),
            None if *flag == "granular" => topology = "Topology::Granular".into(),
            None if *flag == "items" => wrapped = true,
            Some(("map", keys)) => {
                topology = format!("Topology::Map(&{:?})", keys.split(',').collect::<Vec<_>>());
            }
            Some(("patch", rule)) => {
                let (strategies, key) = rule
                    .split_once(':')
                    .map_or((rule, None), |(s, k)| (s, Some(k)));
                let has = |s: &str| strategies.split(',').any(|x| x == s);
                let (merge, retain) = (has("merge"), has("retainKeys"));
                patch = format!(
                    "Some(Patch {{ merge: {merge}, retain_keys: {retain}, key: {key:?} }})"
                );
            }
            Some(("default", value)) => default = format!("Some({value:?})"),
            _ => panic!("not a flag: {flag}"),
        }
    }
    let (inline, ty) = (*name == "~", type_source(package, kind));
    format!(
        "Field {{ number: {number}, name: {name:?}, ty: {ty}, pointer: {pointer}, inline: {inline}, omit: {omit}, \
         topology: {topology}, patch: {patch}, default: {default}, wrapped: {wrapped} }}"
    )
}

fn type_source(package: &str, kind: &str) -> String {
    if let Some(item) = kind.strip_prefix("[]") {
        return format!("Type::List(&{})", type_source(package, item));
    }
    if let Some(value) = kind.strip_prefix("{}") {
        return format!("Type::Map(&{})", type_source(package, value));
    }
    match kind {
        "string" => "Type::String".into(),
        "int32" => "Type::Int32".into(),
        "int64" => "Type::Int64".into(),
        "bool" => "Type::Bool".into(),
        "bytes" => "Type::Bytes".into(),
        "Quantity" | "Time" | "MicroTime" | "IntOrString" | "FieldsV1" | "Raw" => {
            format!("Type::{kind}")
        }
        name if name.contains('/') => format!("Type::Struct(&{})", ident(name)),
        name => format!("Type::Struct(&{})", ident(&format!("{package}.{name}"))),
    }
}
