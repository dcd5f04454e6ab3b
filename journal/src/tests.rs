use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::*;

fn open(dir: &Path) -> Result<Journal, Error> {
    Journal::open(dir.join("journal"), 1)
}

#[test]
fn a_record_is_read_back_listed_in_order_and_deleted() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path())?;
    journal.put("sandbox", "b", &("two", 2))?;
    journal.put("sandbox", "a", &("one", 1))?;
    journal.put("sandbox", "a", &("uno", 1))?;
    journal.put("lease", "a", &"10.0.0.1")?;
    assert_eq!(
        journal.get::<(String, u8)>("sandbox", "a")?,
        Some(("uno".into(), 1))
    );
    let keys: Vec<String> = journal
        .list::<(String, u8)>("sandbox")?
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys, ["a", "b"]);
    assert!(journal.delete("sandbox", "a")?);
    assert!(!journal.delete("sandbox", "a")?);
    assert_eq!(journal.get::<(String, u8)>("sandbox", "a")?, None);
    Ok(())
}

#[test]
fn the_files_are_readable_by_their_owner_alone() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path())?;
    journal.put("sandbox", "a", &1)?;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().mode() & 0o777,
            0o600,
            "{:?}",
            entry.file_name()
        );
    }
    Ok(())
}

#[test]
fn a_failed_transaction_leaves_nothing() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path())?;
    let failed: Result<(), Error> = journal.transaction(|records| {
        records.put("sandbox", "a", &1)?;
        records.get::<String>("sandbox", "a")?;
        Ok(())
    });
    assert!(matches!(failed, Err(Error::Body { .. })));
    assert_eq!(journal.get::<u8>("sandbox", "a")?, None);
    journal.transaction(|records| records.put("sandbox", "a", &1))?;
    assert_eq!(journal.get::<u8>("sandbox", "a")?, Some(1));
    Ok(())
}

#[test]
fn facts_of_an_earlier_boot_are_void_and_intent_is_not() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let before = Journal::open_in_boot(&path, 1, "one")?;
    before.put_for_this_boot("process", "a", &42)?;
    before.put("lease", "a", &"10.0.0.1")?;
    drop(before);
    let same = Journal::open_in_boot(&path, 1, "one")?;
    assert_eq!(same.get::<i32>("process", "a")?, Some(42));
    drop(same);
    let after = Journal::open_in_boot(&path, 1, "two")?;
    assert_eq!(after.get::<i32>("process", "a")?, None);
    assert_eq!(
        after.get::<String>("lease", "a")?.as_deref(),
        Some("10.0.0.1")
    );
    Ok(())
}

#[test]
fn another_version_and_a_damaged_file_are_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    drop(Journal::open(dir.path().join("journal"), 2).unwrap());
    let error = open(dir.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("holds records of version 2, this program reads version 1"),
        "{error}"
    );

    let path = dir.path().join("damaged");
    std::fs::write(
        &path,
        "not a journal, and long enough to be looked at as one".repeat(40),
    )
    .unwrap();
    let error = Journal::open(&path, 1).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");

    let path = dir.path().join("foreign");
    let foreign = Connection::open(&path).unwrap();
    foreign.pragma_update(None, "application_id", 7).unwrap();
    drop(foreign);
    assert!(matches!(
        Journal::open(&path, 1),
        Err(Error::Corrupt { .. })
    ));
}

/// The test program runs itself: the child writes as fast as it can and tells each record it was promised, the
/// parent kills it in the middle and looks for all of them.
#[test]
fn what_was_acknowledged_survives_kill_9() {
    const DIR: &str = "JOURNAL_TEST_DIR";
    if let Some(dir) = std::env::var_os(DIR) {
        let journal = open(Path::new(&dir)).unwrap();
        let mut told = OpenOptions::new()
            .append(true)
            .open(Path::new(&dir).join("told"))
            .unwrap();
        for n in 0_u64.. {
            journal.put("n", &format!("{n:09}"), &n).unwrap();
            io::Write::write_all(&mut told, format!("{n}\n").as_bytes()).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    std::fs::write(&told, "").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::what_was_acknowledged_survives_kill_9"])
        .env(DIR, dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::read_to_string(&told).unwrap().lines().count() < 200 {
        assert!(child.try_wait().unwrap().is_none(), "the writer ended");
        std::thread::yield_now();
    }
    assert!(
        matches!(open(dir.path()), Err(Error::InUse { .. })),
        "two processes on one journal"
    );
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));

    let text = std::fs::read_to_string(&told).unwrap();
    let promised = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .count();
    let journal = open(dir.path()).unwrap();
    let kept = journal.list::<u64>("n").unwrap();
    assert!(kept.len() >= promised, "{} of {promised}", kept.len());
    assert!(
        kept.iter()
            .enumerate()
            .all(|(index, (_, n))| index as u64 == *n)
    );
}
