//! The objects of one kind, its last changes, and who watches them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::kind::Kind;
use super::super::object::{Index, Object, write_with_revision};
use super::{Filter, ROOT};
use crate::store::{Event, Revision};

/// Changes kept for watches that resume: so many bytes of JSON, but no fewer than so many changes.
const HISTORY_BYTES: usize = 1 << 20;
const HISTORY_MIN: usize = 64;

/// Changes that a watch may lag behind before it is ended.
const WATCH_QUEUE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    Added,
    Modified,
    Deleted,
}

impl ChangeType {
    /// The `type` of a watch event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    pub change_type: ChangeType,
    pub object: Arc<Object>,
    /// What selectors saw of the object before.
    previous: Option<Arc<Index>>,
    /// The whole watch event as it goes to those who see the change as it is, with its line end.
    pub line: Bytes,
}

/// A change as one watch sees it: an object that begins to match its selectors is added for it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub change_type: ChangeType,
    pub change: Arc<Change>,
}

/// The changes that a watch gets, past ones first.
#[derive(Debug)]
pub struct Subscription {
    pub past: VecDeque<Seen>,
    pub live: mpsc::Receiver<Seen>,
}

impl Subscription {
    /// The next change; `None` when the server stops or the watch was too slow.
    pub async fn next(&mut self) -> Option<Seen> {
        match self.past.pop_front() {
            Some(seen) => Some(seen),
            None => self.live.recv().await,
        }
    }

    /// What has come already.
    pub fn try_next(&mut self) -> Option<Seen> {
        self.past.pop_front().or_else(|| self.live.try_recv().ok())
    }
}

/// The cached objects of one kind.
pub struct Resource {
    pub kind: &'static Kind,
    prefix: String,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    /// Every change after `floor`, oldest first.
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    floor: Revision,
    revision: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    filter: Filter,
    changes: mpsc::Sender<Seen>,
}

impl Resource {
    pub(super) fn new(kind: &'static Kind) -> Self {
        let group = if kind.group.is_empty() {
            "core"
        } else {
            kind.group
        };
        Self {
            kind,
            prefix: format!("{ROOT}{group}/{}/", kind.plural),
            state: RwLock::default(),
        }
    }

    /// Where the kind's keys begin in the store.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// An object's key in the store.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{}", self.prefix, local_key(namespace, name))
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.read()
            .objects
            .get(&*local_key(namespace, name))
            .cloned()
    }

    /// The objects that `filter` lets through, in the order of their keys, and the revision that this is.
    /// `applied` is how far the cache was before the call.
    pub fn list(&self, filter: &Filter, applied: Revision) -> (Vec<Arc<Object>>, Revision) {
        let state = self.read();
        (state.matching(filter), state.revision.max(applied))
    }

    /// The last change of any object.
    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.read().objects.len()
    }

    /// Every change after `after` that `filter` lets through, those that are past and those to come.
    ///
    /// # Errors
    /// The oldest revision to watch from, when the changes since `after` are no longer all here.
    pub fn watch(&self, after: Revision, filter: Filter) -> Result<Subscription, Revision> {
        let mut state = self.write();
        if after < state.floor {
            return Err(state.floor);
        }
        let begin = state
            .history
            .partition_point(|change| change.object.revision <= after);
        let past = state
            .history
            .range(begin..)
            .filter_map(|change| change.seen_by(&filter))
            .collect();
        Ok(Subscription {
            past,
            live: state.subscribe(filter),
        })
    }

    /// A list, and every change after it.
    pub fn list_and_watch(
        &self,
        filter: Filter,
        applied: Revision,
    ) -> (Vec<Arc<Object>>, Revision, Subscription) {
        let mut state = self.write();
        let objects = state.matching(&filter);
        let revision = state.revision.max(applied);
        (
            objects,
            revision,
            Subscription {
                past: VecDeque::new(),
                live: state.subscribe(filter),
            },
        )
    }

    pub(super) fn start_at(&self, revision: Revision) {
        let mut state = self.write();
        state.floor = revision;
        state.revision = revision;
    }

    pub(super) fn load(&self, key: &str, stored: &[u8], revision: Revision) {
        let mut json = Vec::with_capacity(stored.len() + 32);
        write_with_revision(&mut json, stored, revision);
        let object = self.object(json.into(), revision);
        self.write().objects.insert(key.into(), Arc::new(object));
    }

    /// An object of this kind from its JSON.
    pub fn object(&self, json: Bytes, revision: Revision) -> Object {
        // A stored object was written by this server; one that does not parse matches no selector.
        let value = serde_json::from_slice(&json).unwrap_or_default();
        Object {
            revision,
            json,
            index: Arc::new(Index::of(self.kind, &value)),
        }
    }

    pub(super) fn apply(&self, key: &str, event: &Event) {
        let change_type = if event.deleted {
            ChangeType::Deleted
        } else if event.created == event.revision {
            ChangeType::Added
        } else {
            ChangeType::Modified
        };
        let (line, json) = event_line(change_type, &event.value, event.revision);
        let object = Arc::new(self.object(json, event.revision));
        let mut state = self.write();
        let previous = if event.deleted {
            state.objects.remove(key)
        } else {
            state.objects.insert(key.into(), object.clone())
        };
        let previous = previous.map(|p| p.index.clone());
        state.revision = event.revision;
        state.record(Arc::new(Change {
            change_type,
            object,
            previous,
            line,
        }));
    }

    // A panic while the lock is held leaves the state whole enough: every update of it is one insertion.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn matching(&self, filter: &Filter) -> Vec<Arc<Object>> {
        if let Some(prefix) = filter.key_prefix() {
            let from = (Bound::Included(&*prefix), Bound::Unbounded);
            let range = self
                .objects
                .range::<str, _>(from)
                .take_while(|(key, _)| key.starts_with(&*prefix));
            return range
                .filter(|(_, o)| filter.matches(&o.index))
                .map(|(_, o)| o.clone())
                .collect();
        }
        self.objects
            .values()
            .filter(|o| filter.matches(&o.index))
            .cloned()
            .collect()
    }

    fn subscribe(&mut self, filter: Filter) -> mpsc::Receiver<Seen> {
        let (changes, live) = mpsc::channel(WATCH_QUEUE);
        self.watchers.retain(|watcher| !watcher.changes.is_closed());
        self.watchers.push(Watcher { filter, changes });
        live
    }

    fn record(&mut self, change: Arc<Change>) {
        self.watchers
            .retain(|watcher| match change.seen_by(&watcher.filter) {
                // A full queue is a watch that is too slow. It is ended, and its client resumes from what it has.
                Some(seen) => watcher.changes.try_send(seen).is_ok(),
                None => true,
            });
        self.history_bytes += change.line.len();
        self.history.push_back(change);
        while self.history_bytes > HISTORY_BYTES && self.history.len() > HISTORY_MIN {
            let Some(oldest) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= oldest.line.len();
            self.floor = oldest.object.revision;
        }
    }
}

impl Change {
    /// What `filter` makes of the change; `None` when it concerns nobody behind that filter.
    fn seen_by(self: &Arc<Self>, filter: &Filter) -> Option<Seen> {
        let before = self
            .previous
            .as_ref()
            .is_some_and(|index| filter.matches(index));
        let after = self.change_type != ChangeType::Deleted && filter.matches(&self.object.index);
        let change_type = match (before, after) {
            (false, false) => return None,
            (false, true) => ChangeType::Added,
            (true, true) => ChangeType::Modified,
            (true, false) => ChangeType::Deleted,
        };
        Some(Seen {
            change_type,
            change: self.clone(),
        })
    }
}

/// A key within its resource: `NAMESPACE/NAME`, or `NAME` without a namespace.
fn local_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

/// The JSON line of a watch event, and the object within it, sharing the memory.
fn event_line(change_type: ChangeType, stored: &[u8], revision: Revision) -> (Bytes, Bytes) {
    let mut line = Vec::with_capacity(stored.len() + 80);
    line.extend_from_slice(format!(r#"{{"type":"{}","object":"#, change_type.as_str()).as_bytes());
    let begin = line.len();
    write_with_revision(&mut line, stored, revision);
    let end = line.len();
    line.extend_from_slice(b"}\n");
    line.shrink_to_fit();
    let line = Bytes::from(line);
    let json = line.slice(begin..end);
    (line, json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::kinds::kinds;

    fn resource() -> Resource {
        let kind = kinds().iter().find(|k| k.plural == "configmaps").unwrap();
        Resource::new(kind)
    }

    fn write(resource: &Resource, revision: u64, padding: usize) {
        let value = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a","namespace":"x"}},"data":{{"k":"{}"}}}}"#,
            "x".repeat(padding)
        );
        resource.apply(
            "x/a",
            &Event {
                key: "".into(),
                value: value.into(),
                created: Revision(1),
                revision: Revision(revision),
                deleted: false,
            },
        );
    }

    #[tokio::test]
    async fn a_watch_that_does_not_read_is_ended_and_the_others_go_on() {
        let resource = resource();
        let mut slow = resource.watch(Revision(0), Filter::default()).unwrap();
        let mut quick = resource.watch(Revision(0), Filter::default()).unwrap();
        for revision in 1..=WATCH_QUEUE as u64 + 10 {
            write(&resource, revision, 0);
            assert!(quick.next().await.is_some());
        }
        let mut seen = 0;
        while slow.next().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, WATCH_QUEUE);
        write(&resource, 5000, 0);
        assert_eq!(
            quick.next().await.unwrap().change.object.revision,
            Revision(5000)
        );
    }

    #[test]
    fn a_watch_can_resume_as_far_back_as_the_history_goes() {
        let resource = resource();
        let size = HISTORY_BYTES / HISTORY_MIN / 2;
        for revision in 1..=300 {
            write(&resource, revision, size);
        }
        let oldest = resource.watch(Revision(1), Filter::default()).unwrap_err();
        let resumed = resource.watch(oldest, Filter::default()).unwrap();
        let kept = resumed.past.len() as u64;
        assert_eq!(oldest, Revision(300 - kept));
        assert!((100..=130).contains(&kept), "{kept}");
        assert!(
            resource
                .watch(Revision(oldest.0 - 1), Filter::default())
                .is_err()
        );
    }
}
