//! Who makes a request, and what they may do.

pub mod authenticate;
pub mod authorize;
mod builtin;
pub mod escalation;
pub mod impersonate;
mod node;
pub mod policy;
pub mod tokens;

use serde_json::{Value, json};

/// Whoever made a request, once authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// What the authenticator adds, by key.
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    /// A user of whom it is known that they are who they say.
    pub fn authenticated(
        name: impl Into<String>,
        groups: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|g| g == "system:authenticated") {
            groups.push("system:authenticated".into());
        }
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }

    pub fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".into()];
        Self {
            name: "system:anonymous".into(),
            groups,
            ..Self::default()
        }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// `authentication/v1 UserInfo`.
    pub fn to_json(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        for (key, values) in &self.extra {
            info["extra"][key] = json!(values);
        }
        info
    }
}
