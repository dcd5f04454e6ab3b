//! What every engine must do, as functions of a fresh store. An engine's tests call [`run`].

use std::sync::Arc;

use bytes::Bytes;

use super::{Error, Event, ListOptions, Revision, Store, Watch};

/// Runs the whole suite, each part on a store of its own.
pub async fn run<S: Store>(fresh: impl Fn() -> S) {
    create_refuses_an_existing_key(&fresh()).await;
    update_needs_the_current_revision(&fresh()).await;
    delete_needs_the_current_revision_and_frees_the_key(&fresh()).await;
    revisions_rise_by_one_across_keys(&fresh()).await;
    list_is_ordered_limited_and_pinned_to_a_revision(&fresh()).await;
    watch_tells_history_then_what_comes(&fresh()).await;
    watch_tells_only_its_prefix(&fresh()).await;
    compaction_ends_reads_and_watches_from_before(&fresh()).await;
    each_compaction_drops_what_has_become_superfluous_since_the_last(&fresh()).await;
    the_revision_does_not_fall_when_the_last_write_is_compacted(&fresh()).await;
    of_concurrent_updates_one_wins(Arc::new(fresh())).await;
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn next_events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let batch = tokio::time::timeout(std::time::Duration::from_secs(20), watch.next()).await;
        events.extend(
            batch
                .expect("a batch in time")
                .expect("a watch that goes on")
                .iter()
                .cloned(),
        );
    }
    events
}

async fn create_refuses_an_existing_key(store: &dyn Store) {
    let revision = store.create("/a", bytes("1")).await.unwrap();
    assert_eq!(
        store.create("/a", bytes("2")).await,
        Err(Error::Exists { key: "/a".into() })
    );
    let record = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (record.value, record.created, record.modified),
        (bytes("1"), revision, revision)
    );
    assert_eq!(store.get("/b").await.unwrap(), None);
}

async fn update_needs_the_current_revision(store: &dyn Store) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    let conflict = Error::Conflict {
        key: "/a".into(),
        expected: first,
        found: Some(second),
    };
    assert_eq!(store.update("/a", bytes("3"), first).await, Err(conflict));
    let absent = Error::Conflict {
        key: "/b".into(),
        expected: first,
        found: None,
    };
    assert_eq!(store.update("/b", bytes("3"), first).await, Err(absent));
    let record = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (record.value, record.created, record.modified),
        (bytes("2"), first, second)
    );
}

async fn delete_needs_the_current_revision_and_frees_the_key(store: &dyn Store) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    assert!(store.delete("/a", bytes("2"), first).await.is_err());
    store.delete("/a", bytes("2"), second).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap(), None);
    assert!(store.delete("/a", bytes("2"), second).await.is_err());
    let again = store.create("/a", bytes("3")).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap().unwrap().created, again);
}

async fn revisions_rise_by_one_across_keys(store: &dyn Store) {
    let start = store.revision().await.unwrap();
    let a = store.create("/a", bytes("1")).await.unwrap();
    let b = store.create("/b", bytes("1")).await.unwrap();
    let deleted = store.delete("/a", bytes("1"), a).await.unwrap();
    assert_eq!(
        [a.0, b.0, deleted.0],
        [start.0 + 1, start.0 + 2, start.0 + 3]
    );
    assert!(store.update("/b", bytes("2"), a).await.is_err());
    assert_eq!(store.revision().await.unwrap(), deleted);
}

async fn list_is_ordered_limited_and_pinned_to_a_revision(store: &dyn Store) {
    for key in ["/p/c", "/p/a", "/q/x", "/p/b", "/p", "/p0"] {
        store.create(key, bytes("1")).await.unwrap();
    }
    let page = store
        .list(
            "/p/",
            ListOptions {
                limit: 2,
                count: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    let keys = |listing: &super::Listing| {
        listing
            .records
            .iter()
            .map(|r| r.key.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(&page), ["/p/a", "/p/b"]);
    assert_eq!((page.more, page.remaining), (true, 1));

    // The second page is as of the first, whatever has happened since.
    let c = store.get("/p/c").await.unwrap().unwrap();
    store.delete("/p/c", bytes("1"), c.modified).await.unwrap();
    store.create("/p/d", bytes("1")).await.unwrap();
    let options = ListOptions {
        after: Some("/p/b".into()),
        limit: 2,
        at: Some(page.revision),
        count: true,
    };
    let rest = store.list("/p/", options).await.unwrap();
    assert_eq!(keys(&rest), ["/p/c"]);
    assert_eq!((rest.more, rest.revision), (false, page.revision));

    let now = store.list("/p/", ListOptions::default()).await.unwrap();
    assert_eq!(keys(&now), ["/p/a", "/p/b", "/p/d"]);
    let newest = store.revision().await.unwrap();
    let future = ListOptions {
        at: Some(Revision(newest.0 + 1)),
        ..Default::default()
    };
    assert!(matches!(
        store.list("/p/", future).await,
        Err(Error::Future { .. })
    ));
}

async fn watch_tells_history_then_what_comes(store: &dyn Store) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    let mut watch = store.watch("/", first).await.unwrap();
    let third = store.delete("/a", bytes("last"), second).await.unwrap();
    let events = next_events(&mut watch, 2).await;
    let seen: Vec<_> = events
        .iter()
        .map(|e| (e.revision, e.value.clone(), e.deleted, e.created))
        .collect();
    assert_eq!(
        seen,
        [
            (second, bytes("2"), false, first),
            (third, bytes("last"), true, first)
        ]
    );
}

async fn watch_tells_only_its_prefix(store: &dyn Store) {
    let mut watch = store
        .watch("/p/", store.revision().await.unwrap())
        .await
        .unwrap();
    for key in ["/o", "/p/a", "/p", "/q", "/p/b"] {
        store.create(key, bytes("1")).await.unwrap();
    }
    let keys: Vec<_> = next_events(&mut watch, 2)
        .await
        .iter()
        .map(|e| e.key.to_string())
        .collect();
    assert_eq!(keys, ["/p/a", "/p/b"]);
}

async fn compaction_ends_reads_and_watches_from_before(store: &dyn Store) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    let third = store.update("/a", bytes("3"), second).await.unwrap();
    store.compact(second).await.unwrap();
    assert_eq!(store.oldest().await.unwrap(), second);
    let gone = Error::Compacted {
        requested: first,
        oldest: second,
    };
    assert_eq!(store.watch("/", first).await.unwrap_err(), gone);
    let at_first = ListOptions {
        at: Some(first),
        ..Default::default()
    };
    assert_eq!(store.list("/", at_first).await.unwrap_err(), gone);
    let at_second = ListOptions {
        at: Some(second),
        ..Default::default()
    };
    assert_eq!(
        store.list("/", at_second).await.unwrap().records[0].value,
        bytes("2")
    );
    let mut watch = store.watch("/", second).await.unwrap();
    assert_eq!(next_events(&mut watch, 1).await[0].revision, third);
}

async fn each_compaction_drops_what_has_become_superfluous_since_the_last(store: &dyn Store) {
    let mut last = store.create("/a", bytes("0")).await.unwrap();
    let b = store.create("/b", bytes("b")).await.unwrap();
    for value in ["1", "2", "3"] {
        store.compact(last).await.unwrap();
        last = store.update("/a", bytes(value), last).await.unwrap();
    }
    let gone = store.delete("/b", bytes("b"), b).await.unwrap();
    let again = store.create("/b", bytes("again")).await.unwrap();
    store.compact(gone).await.unwrap();
    let options = ListOptions {
        at: Some(gone),
        ..Default::default()
    };
    let then = store.list("/", options).await.unwrap();
    assert_eq!(then.records.len(), 1);
    store.compact(again).await.unwrap();
    let now = store.list("/", ListOptions::default()).await.unwrap();
    let seen: Vec<_> = now
        .records
        .iter()
        .map(|r| (r.value.clone(), r.created))
        .collect();
    assert_eq!(
        seen,
        [(bytes("3"), Revision(b.0 - 1)), (bytes("again"), again)]
    );
}

async fn the_revision_does_not_fall_when_the_last_write_is_compacted(store: &dyn Store) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.delete("/a", bytes("1"), first).await.unwrap();
    store.compact(second).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), second);
    assert_eq!(
        store.create("/a", bytes("2")).await.unwrap(),
        Revision(second.0 + 1)
    );
}

async fn of_concurrent_updates_one_wins(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("0")).await.unwrap();
    let writers = (0..20).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.update("/a", bytes("1"), first).await })
    });
    let outcomes = futures::future::join_all(writers).await;
    let won = outcomes
        .into_iter()
        .filter(|outcome| outcome.as_ref().is_ok_and(Result::is_ok))
        .count();
    assert_eq!(won, 1);
}
