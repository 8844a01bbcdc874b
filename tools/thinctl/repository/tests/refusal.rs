// SPDX-License-Identifier: GPL-2.0

//! What is not taken.

use std::fs;

use super::{
    add,
    five,
    nothing,
    scratch,
    Volume, //
};
use crate::{
    error::{
        Error,
        Result, //
    },
    repository::Repository,
    stream::{
        tests::{
            header,
            Numbers, //
        },
        Header,
        Writer, //
    },
};

#[track_caller]
fn refused<T>(result: Result<T>, part: &str) {
    match result {
        Err(Error::Refused(message)) => assert!(message.contains(part), "{message}"),
        Err(e) => panic!("{part}: {e:?}"),
        Ok(_) => panic!("{part}: taken"),
    }
}

#[track_caller]
fn damaged<T>(result: Result<T>, part: &str) {
    match result {
        Err(Error::Damaged(message)) => assert!(message.contains(part), "{message}"),
        Err(e) => panic!("{part}: {e:?}"),
        Ok(_) => panic!("{part}: taken"),
    }
}

#[test]
fn what_does_not_follow_is_refused() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
    let mut numbers = Numbers(1);
    let next = &all[&1];
    refused(
        add(&locked, &next.stream(Some(&all[&4]), &mut numbers)),
        "starts from",
    );
    let mut small = all[&5].clone();
    small.0.pop();
    refused(
        add(&locked, &small.stream(Some(&all[&5]), &mut numbers)),
        "shrunk",
    );
    let start = Header {
        from: None,
        start: 512,
        ..header(1 << 20, 4096, 0)
    };
    let mut stream = Vec::new();
    Writer::new(&mut stream, &start).unwrap().finish().unwrap();
    refused(add(&locked, &stream), "cannot begin");
    let first = locked.add("other", None, |w| {
        w.write_all(&next.stream(Some(&all[&5]), &mut Numbers(1)))
            .map_err(Error::io("writing"))
    });
    refused(first, "first");
    assert_eq!(locked.volumes().unwrap(), ["vol"]);
    assert!(!folder.path().join("other").exists());
    for name in ["", ".", "..", "a/b", ".hidden", "a\nb", &"x".repeat(201)] {
        refused(locked.add(name, None, |_| Ok(())), "name of a volume");
        refused(locked.generations(name), "name of a volume");
    }
    refused(locked.prune("vol", 0, &mut nothing), "must be kept");
    assert_eq!(super::check(&locked, &all), [1, 2, 3, 4, 5]);
}

#[test]
fn what_is_no_stream_is_refused() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
    let good = all[&1].stream(None, &mut Numbers(1));
    damaged(add(&locked, &good[..good.len() - 1]), "cut off");
    damaged(add(&locked, &[]), "cut off");
    damaged(
        add(&locked, &[good.as_slice(), b"x"].concat()),
        "follows the stream",
    );
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last / 2] ^= 1;
    damaged(add(&locked, &bad), "checksum");
    // The error of who writes says more than that the stream is cut off.
    let failed = locked.add("vol", None, |w| {
        w.write_all(&good[..100]).map_err(Error::io("writing"))?;
        Err(Error::Interrupted(15))
    });
    assert!(matches!(failed, Err(Error::Interrupted(15))));
    let failed = locked.prune("vol", 2, &mut |_| Err(Error::Interrupted(2)));
    assert!(matches!(failed, Err(Error::Interrupted(2))));
    assert_eq!(super::check(&locked, &all), [1, 2, 3, 4, 5]);
    // Nothing is left of them.
    assert_eq!(fs::read_dir(folder.path().join("vol")).unwrap().count(), 10);
}

/// Nobody sends a terabyte to hear that it was for nothing.
#[test]
fn a_refusal_comes_early() {
    let folder = scratch();
    five(folder.path(), false);
    let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
    let size = 64 << 20;
    let mut written = 0;
    let result = locked.add("vol", None, |w| {
        let mut writer = Writer::new(w, &header(size, 4096, size))?;
        for i in 0..64 {
            writer.data(i << 20, &Numbers(i).bytes(1 << 20))?;
            written += 1;
        }
        writer.finish().map(drop)
    });
    refused(result, "starts from");
    assert!(written < 4, "{written}");
}

#[test]
fn one_writes_at_a_time() {
    let folder = scratch();
    five(folder.path(), false);
    let repository = Repository::open(folder.path()).unwrap();
    let locked = repository.lock().unwrap();
    assert!(matches!(repository.lock(), Err(Error::Busy(_))));
    // One may read.
    assert!(repository.restore("vol", None).is_ok());
    drop(locked);
    repository.lock().unwrap();
}

#[test]
fn a_file_system_of_its_own_is_empty() {
    let folder = scratch();
    let lost = folder.path().join("lost+found");
    fs::create_dir(&lost).unwrap();
    let repository = Repository::create(folder.path()).unwrap();
    assert_eq!(repository.volumes().unwrap(), [""; 0]);
    // Unless somebody has called a volume so.
    let other = scratch();
    let lost = other.path().join("lost+found");
    fs::create_dir(&lost).unwrap();
    fs::write(lost.join("000001.full.thin"), "").unwrap();
    refused(
        Repository::create(other.path()),
        "not empty: it has lost+found",
    );
}

/// Other programs may name their files as those are that are not finished.
#[test]
fn files_of_others_stay() {
    let folder = scratch();
    let theirs = folder.path().join(".tmp-import");
    fs::write(&theirs, "theirs").unwrap();
    refused(
        Repository::create(folder.path()),
        "not empty: it has .tmp-import",
    );
    fs::remove_file(&theirs).unwrap();
    let marker = folder.path().join(".tmp-.repository.json-abcdef");
    fs::write(&marker, "{").unwrap();
    let repository = Repository::create(folder.path()).unwrap();
    assert!(!marker.exists());
    fs::create_dir(folder.path().join("vol")).unwrap();
    let [old, manifest, theirs, short] = [
        ".tmp-000001-abcdef",
        ".tmp-000001.full.json-abcdef",
        ".tmp-import",
        ".tmp-00001-abcdef",
    ]
    .map(|name| folder.path().join("vol").join(name));
    for file in [&old, &manifest, &theirs, &short] {
        fs::write(file, "").unwrap();
    }
    drop(repository.lock().unwrap());
    let there = [&old, &manifest, &theirs, &short].map(|file| file.exists());
    assert_eq!(there, [false, false, true, true]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let folder = scratch();
    let path = folder.path().join("new");
    assert!(matches!(Repository::open(&path), Err(Error::NotFound(_))));
    let repository = Repository::create(&path).unwrap();
    refused(Repository::create(&path), "already");
    refused(Repository::create(folder.path()), "not empty: it has new");
    assert_eq!(repository.volumes().unwrap(), [""; 0]);
    assert_eq!(repository.last_of_chain("vol").unwrap(), None);
    assert!(matches!(
        repository.generations("vol"),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        repository.restore("vol", None),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        repository.verify(Some("vol"), &mut nothing),
        Err(Error::NotFound(_))
    ));
    assert_eq!(
        repository.verify(None, &mut nothing).unwrap().generations,
        0
    );
    let volume = Volume(vec![Some(1)]);
    add(
        &repository.lock().unwrap(),
        &volume.stream(None, &mut Numbers(1)),
    )
    .unwrap();
    assert!(matches!(
        repository.restore("vol", Some(2)),
        Err(Error::NotFound(_))
    ));
}

#[track_caller]
fn not_found<T>(result: Result<T>, part: &str) {
    match result {
        Err(Error::NotFound(message)) => assert!(message.contains(part), "{message}"),
        Err(e) => panic!("{part}: {e:?}"),
        Ok(_) => panic!("{part}: found"),
    }
}

/// `thinctl init` is advised only where it can help.
#[test]
fn it_is_told_what_is_there_instead() {
    let folder = scratch();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("empty")).unwrap();
    std::os::unix::fs::symlink("nothing", at("link")).unwrap();

    not_found(Repository::open(&at("new")), "thinctl init");
    not_found(Repository::open(&at("empty")), "not mounted");
    not_found(Repository::open(&at("empty")), "thinctl init");
    refused(Repository::open(folder.path()), "has empty, file, link");
    // Both are told the same of what is neither of them.
    for path in ["file", "file/", "file/new"] {
        refused(Repository::open(&at(path)), "file is a file");
        refused(Repository::create(&at(path)), "file is a file");
    }
    refused(Repository::open(&at("link")), "link");
    refused(Repository::create(&at("link")), "link");
    refused(Repository::create("/dev/null".as_ref()), "device");
    let no_folder = format!("no folder {},", at("a").display());
    not_found(Repository::open(&at("a/b/c")), &no_folder);
    not_found(Repository::create(&at("a/b/c")), &no_folder);
    assert!(!at("a").exists());

    Repository::create(&at("empty")).unwrap();
    Repository::create(&at("new")).unwrap();
}

#[test]
fn what_a_marker_lacks_is_told() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let marker = folder.path().join(".repository.json");
    let open = || Repository::open(folder.path());
    fs::write(&marker, "{\"version\":3}").unwrap();
    damaged(open(), "version 3, which a newer thinctl");
    fs::write(&marker, "{\"version\":1}").unwrap();
    damaged(open(), "version 1, which an older thinctl");
    let lose: [&dyn Fn(); 4] = [
        &|| fs::write(&marker, "").unwrap(),
        &|| fs::write(&marker, "{\"version\":2}").unwrap(),
        &|| fs::write(&marker, [0; 4096]).unwrap(),
        &|| fs::remove_file(&marker).unwrap(),
    ];
    for lose in lose {
        lose();
        let Err(Error::Damaged(told)) = open() else {
            panic!("it is opened");
        };
        // What is told to be done helps.
        let json = told.split_once("write ").unwrap().1.split(' ').next();
        fs::write(&marker, json.unwrap()).unwrap();
        let locked = open().unwrap().lock().unwrap();
        assert_eq!(super::check(&locked, &all), [1, 2, 3, 4, 5]);
    }
}

/// It is known by a name of its own, wherever it is.
#[test]
fn a_moved_repository_is_the_same() {
    let folder = scratch();
    let [one, two, moved] = ["one", "two", "moved"].map(|name| folder.path().join(name));
    let first = Repository::create(&one).unwrap().id().to_owned();
    assert_ne!(Repository::create(&two).unwrap().id(), first);
    fs::rename(&one, &moved).unwrap();
    assert_eq!(Repository::open(&moved).unwrap().id(), first);
}

/// Files of other programs stay what they are.
#[test]
fn other_files_do_not_matter() {
    let folder = scratch();
    let all = five(folder.path(), false);
    let others = [
        "notes",
        "7.full.thin",
        "0000008.full.thin",
        "000009.full.thin.part",
        "x.full.json",
    ];
    for name in others {
        fs::write(folder.path().join("vol").join(name), "").unwrap();
    }
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    let locked = Repository::open(folder.path()).unwrap().lock().unwrap();
    assert_eq!(locked.volumes().unwrap(), ["vol"]);
    assert_eq!(super::check(&locked, &all), [1, 2, 3, 4, 5]);
    assert!(others
        .iter()
        .all(|name| folder.path().join("vol").join(name).exists()));
    assert!(folder.path().join("lost+found").exists());
}
