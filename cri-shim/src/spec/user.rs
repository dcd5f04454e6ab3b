//! Who the process is: the request's user or the image's, found in the rootfs's own `/etc/passwd` and `/etc/group`.

use cri_api::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use serde::{Deserialize, Serialize};

/// A resolved user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Its home folder, `/` if it has none.
    pub home: String,
}

/// A user that can't be found or makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
    #[error("run_as_group is set without a user")]
    GroupAlone,
    #[error("id {0} is not between 0 and 4294967295")]
    Range(i64),
}

/// The text of a rootfs's account files; a missing file is empty.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    /// Resolves the request's user; `image` is the image's `User`: `name`, `uid`, and either with `:group`.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn resolve(
        &self,
        security: &LinuxContainerSecurityContext,
        image: &str,
    ) -> Result<User, UserError> {
        let (image_user, image_group) = image.split_once(':').unwrap_or((image, ""));
        let asked = match &security.run_as_user {
            _ if !security.run_as_username.is_empty() => Some(security.run_as_username.clone()),
            Some(uid) => Some(id(uid.value)?.to_string()),
            None => None,
        };
        let from_image = asked.is_none();
        let name = asked.unwrap_or_else(|| image_user.to_owned());
        let (entry, uid) = match (name.as_str(), name.parse::<u32>()) {
            ("", _) => (self.by_uid(0), 0),
            (_, Ok(uid)) => (self.by_uid(uid), uid),
            (name, Err(_)) => {
                let entry = self.passwd().find(|entry| entry.name == name);
                let uid = entry
                    .as_ref()
                    .map(|entry| entry.uid)
                    .ok_or_else(|| UserError::NoUser(name.to_owned()))?;
                (entry, uid)
            }
        };
        let gid = match &security.run_as_group {
            Some(_) if security.run_as_user.is_none() && security.run_as_username.is_empty() => {
                return Err(UserError::GroupAlone);
            }
            Some(gid) => id(gid.value)?,
            None if from_image && !image_group.is_empty() => self.gid(image_group)?,
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        let mut groups = vec![gid];
        if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
            && let Some(entry) = &entry
        {
            groups.extend(self.memberships(entry.name));
        }
        for group in &security.supplemental_groups {
            groups.push(id(*group)?);
        }
        let mut seen = std::collections::BTreeSet::new();
        groups.retain(|group| seen.insert(*group));
        let home = entry
            .map(|entry| entry.home)
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/");
        Ok(User {
            uid,
            gid,
            groups,
            home: home.to_owned(),
        })
    }

    fn passwd(&self) -> impl Iterator<Item = Passwd<'_>> {
        self.passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, rest @ ..] = fields.as_slice() else {
                return None;
            };
            Some(Passwd {
                name,
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: rest.get(1).copied().unwrap_or_default(),
            })
        })
    }

    fn by_uid(&self, uid: u32) -> Option<Passwd<'_>> {
        self.passwd().find(|entry| entry.uid == uid)
    }

    /// Name, gid and members of each group.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }

    fn gid(&self, group: &str) -> Result<u32, UserError> {
        let by_name = || {
            self.groups()
                .find(|(name, ..)| *name == group)
                .map(|(_, gid, _)| gid)
        };
        group
            .parse()
            .ok()
            .or_else(by_name)
            .ok_or_else(|| UserError::NoGroup(group.to_owned()))
    }

    fn memberships<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.groups()
            .filter(move |(.., members)| members.split(',').any(|member| member == user))
            .map(|(_, gid, _)| gid)
    }
}

fn id(value: i64) -> Result<u32, UserError> {
    u32::try_from(value).map_err(|_| UserError::Range(value))
}
