//! Device rules as systemd's properties, which know only of what is allowed (`systemd.resource-control(5)`,
//! "DeviceAllow=").

use super::properties::Property;
use super::value::Value;
use linux::cgroup::{DeviceKind, DeviceRule};

/// The first version that takes `char-MAJOR` and paths to nodes that don't exist.
const WITH_NUMBERS: u32 = 240;

/// The properties that hold a container to these rules. Rules that can't be put as a list of what is allowed leave
/// systemd out of it: the container's own filter holds them alone.
pub(super) fn properties(rules: &[DeviceRule], version: u32) -> Vec<Property> {
    // An empty list takes back what an existing unit has.
    let none = Property::new("DeviceAllow", Value::Array("(ss)".to_owned(), Vec::new()));
    let list = allowed(rules)
        .filter(|_| version >= WITH_NUMBERS)
        .and_then(|rules| rules.iter().map(entry).collect::<Option<Vec<_>>>());
    match list {
        Some(list) => vec![
            none,
            Property::new("DevicePolicy", Value::text("strict")),
            Property::new("DeviceAllow", Value::Array("(ss)".to_owned(), list)),
        ],
        None => vec![none, Property::new("DevicePolicy", Value::text("auto"))],
    }
}

/// The rules without those that deny; `None` if there is no such list.
fn allowed(rules: &[DeviceRule]) -> Option<Vec<DeviceRule>> {
    let mut list: Option<Vec<DeviceRule>> = Some(Vec::new());
    for rule in rules {
        if *rule == DeviceRule::everything(rule.allow) {
            list = if rule.allow { None } else { Some(Vec::new()) };
            continue;
        }
        match (&mut list, rule.allow) {
            (None, true) => {}
            (None, false) => return None,
            (Some(list), allow) => {
                for one in each_kind(rule) {
                    if allow {
                        add(list, one);
                    } else {
                        remove(list, &one)?;
                    }
                }
            }
        }
    }
    list
}

fn each_kind(rule: &DeviceRule) -> Vec<DeviceRule> {
    match rule.kind {
        DeviceKind::All => [DeviceKind::Block, DeviceKind::Char]
            .map(|kind| DeviceRule { kind, ..*rule })
            .to_vec(),
        _ => vec![*rule],
    }
}

fn add(list: &mut Vec<DeviceRule>, rule: DeviceRule) {
    let same = |other: &&mut DeviceRule| {
        (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor)
    };
    match list.iter_mut().find(same) {
        Some(known) => {
            known.read |= rule.read;
            known.write |= rule.write;
            known.mknod |= rule.mknod;
        }
        None => list.push(rule),
    }
}

/// `None` if it takes a part of what another rule allows.
fn remove(list: &mut Vec<DeviceRule>, rule: &DeviceRule) -> Option<()> {
    let covers = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
    let meets = |a: Option<u32>, b: Option<u32>| covers(a, b) || covers(b, a);
    for known in list.iter_mut().filter(|known| known.kind == rule.kind) {
        if covers(rule.major, known.major) && covers(rule.minor, known.minor) {
            known.read &= !rule.read;
            known.write &= !rule.write;
            known.mknod &= !rule.mknod;
        } else if meets(rule.major, known.major) && meets(rule.minor, known.minor) {
            return None;
        }
    }
    list.retain(|known| known.read || known.write || known.mknod);
    Some(())
}

/// `None` for any major number with a certain minor one, which systemd can't name.
fn entry(rule: &DeviceRule) -> Option<Value> {
    let kind = match rule.kind {
        DeviceKind::Block => "block",
        _ => "char",
    };
    let node = match (rule.major, rule.minor) {
        (None, None) => format!("{kind}-*"),
        (Some(major), None) => format!("{kind}-{major}"),
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (None, Some(_)) => return None,
    };
    let access: String = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')]
        .iter()
        .filter_map(|(on, letter)| on.then_some(letter))
        .collect();
    Some(Value::Struct(vec![Value::Text(node), Value::Text(access)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: DeviceKind,
        major: Option<u32>,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        }
    }

    /// What systemd is told: the policy, and the list as text.
    fn told(rules: &[DeviceRule]) -> (String, Vec<String>) {
        let properties = properties(rules, 252);
        let find = |name: &str| {
            let found = properties
                .iter()
                .rev()
                .find(|property| property.name == name);
            found.map(|property| property.value.clone())
        };
        let Some(Value::Text(policy)) = find("DevicePolicy") else {
            panic!("no policy")
        };
        let Some(Value::Array(_, list)) = find("DeviceAllow") else {
            panic!("no list")
        };
        let list = list.into_iter().map(|entry| match entry {
            Value::Struct(parts) => parts
                .iter()
                .map(|part| match part {
                    Value::Text(text) => text.clone(),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
                .join(" "),
            other => panic!("{other:?}"),
        });
        (policy, list.collect())
    }

    #[test]
    fn what_is_allowed_is_listed() {
        let rules = [
            DeviceRule::everything(false),
            rule(true, DeviceKind::Char, None, None, "m"),
            rule(true, DeviceKind::Char, Some(1), Some(3), "r"),
            rule(true, DeviceKind::Char, Some(1), Some(3), "w"),
            DeviceRule::allow_char(136, None),
            rule(true, DeviceKind::Block, Some(8), Some(0), "rwm"),
            rule(false, DeviceKind::Block, Some(8), None, "wm"),
        ];
        let (policy, list) = told(&rules);
        assert_eq!(policy, "strict");
        assert_eq!(
            list,
            [
                "char-* m",
                "/dev/char/1:3 rw",
                "char-136 rwm",
                "/dev/block/8:0 r"
            ]
        );
    }

    #[test]
    fn what_is_no_list_is_left_to_the_containers_own_filter() {
        let all = DeviceRule::everything(true);
        let auto = ("auto".to_owned(), Vec::new());
        assert_eq!(told(&[all]), auto);
        assert_eq!(
            told(&[all, rule(false, DeviceKind::Char, Some(1), Some(5), "r")]),
            auto
        );
        let some_of_many = [
            DeviceRule::allow_char(136, None),
            rule(false, DeviceKind::Char, Some(136), Some(7), "rwm"),
        ];
        assert_eq!(told(&some_of_many), auto);
        assert_eq!(
            told(&[rule(true, DeviceKind::Char, None, Some(7), "r")]),
            auto
        );
        assert_eq!(
            properties(&[DeviceRule::allow_char(136, None)], 239).len(),
            2
        );
    }

    #[test]
    fn nothing_allowed_is_an_empty_list() {
        assert_eq!(told(&[all_denied()]), ("strict".to_owned(), Vec::new()));
        assert_eq!(
            told(&[DeviceRule::everything(true), all_denied()]),
            ("strict".to_owned(), Vec::new())
        );
    }

    fn all_denied() -> DeviceRule {
        DeviceRule::everything(false)
    }
}
