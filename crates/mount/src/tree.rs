//! A listing becomes an index of directories and files, made once and never changed.
//!
//! Nodes lie in breadth-first order, so that the children of a directory are neighbours sorted by name: a
//! lookup is a binary search, reading a directory is a slice, and an inode number is a position. A file's
//! object name is its path, joined again when it is opened; nothing is stored twice. About 150 bytes an object.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::SystemTime;

use super::names::{Hidden, HiddenObjects, Place, askable, place};
use flashjob_bucket::Object;

/// A file's or directory's number, as in `st_ino`: fixed for the life of the tree, the root is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(u64);

impl Inode {
    /// The directory at the mount location itself.
    pub const ROOT: Inode = Inode(1);

    /// Takes a number that the kernel sent.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number to show to the kernel.
    pub fn number(self) -> u64 {
        self.0
    }

    fn at(position: usize) -> Self {
        Self(position as u64 + 1)
    }

    fn position(self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(1)?).ok()
    }
}

/// Attributes of a node, as `stat` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number of the node.
    pub inode: Inode,
    /// True for a directory, false for a regular file.
    pub is_directory: bool,
    /// Length of a file's content; 0 for a directory.
    pub size_bytes: u64,
    /// Time at which the object was written; for a directory the newest of its contents. `None` where unknown.
    pub modified: Option<SystemTime>,
    /// Number of links: 1 for a file, 2 + subdirectories for a directory.
    pub links: u32,
}

/// An index of directories and files.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Names and ETags, concatenated.
    text: String,
    /// Prefix of the objects' names that paths do not show: only for an object PAR.
    object_prefix: String,
    files: usize,
    file_bytes: u64,
}

#[derive(Debug)]
struct Node {
    parent: usize,
    name: Span,
    modified: Option<SystemTime>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Directory { first: usize, count: usize, subdirectories: u32 },
    File { size_bytes: u64, etag: Option<Span>, md5: Option<[u8; 16]> },
}

/// A piece of [`Tree::text`].
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    len: usize,
}

/// An object that is being inserted.
struct Listed<'a> {
    path: &'a str,
    object: &'a Object,
    is_directory: bool,
}

impl Tree {
    /// Indexes a listing, in any order. Objects whose names cannot be paths are left out and counted.
    pub fn new(objects: &[Object]) -> (Self, HiddenObjects) {
        let mut hidden = HiddenObjects::default();
        let mut entries = Vec::with_capacity(objects.len());
        for object in objects {
            match place(&object.name) {
                Ok(Place::File(path)) => entries.push(Listed { path, object, is_directory: false }),
                Ok(Place::Directory(path)) => {
                    if object.size_bytes > 0 {
                        hidden.add(Hidden::MarkerWithContent, &object.name);
                    }
                    entries.push(Listed { path, object, is_directory: true });
                }
                Err(reason) => hidden.add(reason, &object.name),
            }
        }
        let tree = Self::build(entries, &mut hidden, String::new());
        (tree, hidden)
    }

    /// The tree of an object PAR: one file, called like the last component of the object's name.
    pub fn of_one_object(object: &Object) -> (Self, HiddenObjects) {
        let (directory, base) = match object.name.rsplit_once('/') {
            Some((directory, base)) => (format!("{directory}/"), base),
            None => (String::new(), object.name.as_str()),
        };
        let mut hidden = HiddenObjects::default();
        let entries = match askable(&object.name).and_then(|()| place(base)) {
            Ok(Place::File(path)) => vec![Listed { path, object, is_directory: false }],
            Ok(Place::Directory(_)) => Vec::new(),
            Err(reason) => {
                hidden.add(reason, &object.name);
                Vec::new()
            }
        };
        let tree = Self::build(entries, &mut hidden, directory);
        (tree, hidden)
    }

    /// Number of nodes that a listing needs, without the root: exact for names in byte order, else, or if objects are
    /// hidden, an upper bound.
    pub fn nodes_needed(objects: &[Object]) -> usize {
        let mut before: &[u8] = &[];
        let new_directories = objects.iter().map(|object| {
            let name = object.name.as_bytes();
            let shared = name.iter().zip(before).take_while(|(a, b)| a == b).count();
            before = name;
            name[shared..].iter().filter(|byte| **byte == b'/').count()
        });
        objects.len() + new_directories.sum::<usize>()
    }

    fn build(mut entries: Vec<Listed<'_>>, hidden: &mut HiddenObjects, object_prefix: String) -> Self {
        // With `/` below every other byte, whatever shares a directory is contiguous: `blue`, `blue/x`, `blue-x`.
        let key = |byte: u8| if byte == b'/' { 0 } else { byte };
        entries.sort_by(|a, b| a.path.bytes().map(key).cmp(b.path.bytes().map(key)));
        let root = Node {
            parent: 0,
            name: Span { start: 0, len: 0 },
            modified: None,
            kind: Kind::Directory { first: 1, count: 0, subdirectories: 0 },
        };
        let mut tree = Self { nodes: vec![root], text: String::new(), object_prefix, files: 0, file_bytes: 0 };
        let mut directories = VecDeque::from([(0, 0..entries.len(), 0)]);
        while let Some((position, range, depth_bytes)) = directories.pop_front() {
            tree.add_children(&entries, hidden, position, range, depth_bytes, &mut directories);
        }
        // Children have higher positions than their directory. Backwards, a directory has received all of its times
        // before it passes the newest on.
        for position in (1..tree.nodes.len()).rev() {
            let (parent, modified) = (tree.nodes[position].parent, tree.nodes[position].modified);
            let newest = &mut tree.nodes[parent].modified;
            *newest = (*newest).max(modified);
        }
        tree.nodes.shrink_to_fit();
        tree.text.shrink_to_fit();
        tree
    }

    /// Appends the nodes of one directory, whose entries are `range` and whose path has `depth_bytes` bytes with
    /// its slash; queues its subdirectories.
    fn add_children(
        &mut self,
        entries: &[Listed<'_>],
        hidden: &mut HiddenObjects,
        position: usize,
        range: Range<usize>,
        depth_bytes: usize,
        directories: &mut VecDeque<(usize, Range<usize>, usize)>,
    ) {
        let first = self.nodes.len();
        let mut subdirectories = 0;
        let mut next = range.start;
        while next < range.end {
            let rest = &entries[next].path[depth_bytes..];
            let name = rest.split('/').next().unwrap_or(rest);
            let name_end = depth_bytes + name.len();
            let group_len = entries[next..range.end]
                .iter()
                .take_while(|entry| {
                    let path = entry.path.as_bytes();
                    path[depth_bytes..].starts_with(name.as_bytes()) && matches!(path.get(name_end), None | Some(b'/'))
                })
                .count();
            let group = &entries[next..next + group_len];
            // Entries that end with this name sort before those below it.
            let ending = group.iter().take_while(|entry| entry.path.len() == name_end).count();
            let is_directory = group_len > ending || group.iter().any(|entry| entry.is_directory);
            let name = self.keep(name);
            if is_directory {
                for file in group[..ending].iter().filter(|entry| !entry.is_directory) {
                    hidden.add(Hidden::ShadowedByDirectory, &file.object.name);
                }
                let marked = group[..ending].iter().filter(|entry| entry.is_directory);
                let modified = marked.filter_map(|entry| entry.object.modified).max();
                directories.push_back((self.nodes.len(), next + ending..next + group_len, name_end + 1));
                let kind = Kind::Directory { first: 0, count: 0, subdirectories: 0 };
                self.nodes.push(Node { parent: position, name, modified, kind });
                subdirectories += 1;
            } else {
                let object = group[0].object;
                for duplicate in &group[1..] {
                    hidden.add(Hidden::Duplicate, &duplicate.object.name);
                }
                let etag = object.etag.as_deref().map(|etag| self.keep(etag));
                let kind = Kind::File { size_bytes: object.size_bytes, etag, md5: object.md5 };
                self.nodes.push(Node { parent: position, name, modified: object.modified, kind });
                self.files += 1;
                self.file_bytes = self.file_bytes.saturating_add(object.size_bytes);
            }
            next += group_len;
        }
        let count = self.nodes.len() - first;
        self.nodes[position].kind = Kind::Directory { first, count, subdirectories };
    }

    fn keep(&mut self, text: &str) -> Span {
        let start = self.text.len();
        self.text.push_str(text);
        Span { start, len: text.len() }
    }

    fn text(&self, span: Span) -> &str {
        &self.text[span.start..span.start + span.len]
    }

    fn node(&self, inode: Inode) -> Option<&Node> {
        self.nodes.get(inode.position()?)
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of files and directories, the root included.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Memory of the index, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.text.capacity() + self.object_prefix.capacity()
    }

    /// Attributes of `inode`; `None` if there is no such node.
    pub fn attributes(&self, inode: Inode) -> Option<Attributes> {
        let node = self.node(inode)?;
        let (is_directory, size_bytes, links) = match node.kind {
            Kind::Directory { subdirectories, .. } => (true, 0, 2 + subdirectories),
            Kind::File { size_bytes, .. } => (false, size_bytes, 1),
        };
        Some(Attributes { inode, is_directory, size_bytes, modified: node.modified, links })
    }

    /// The node called `name` in `directory`. `None` also where `directory` is none.
    pub fn lookup(&self, directory: Inode, name: &[u8]) -> Option<Inode> {
        let Kind::Directory { first, count, .. } = self.node(directory)?.kind else { return None };
        let children = &self.nodes[first..first + count];
        let found = children.binary_search_by(|child| self.text(child.name).as_bytes().cmp(name)).ok()?;
        Some(Inode::at(first + found))
    }

    /// The node at `path`, which is relative to the root and has no empty components; the root for "".
    pub fn find(&self, path: &[u8]) -> Option<Inode> {
        if path.is_empty() {
            return Some(Inode::ROOT);
        }
        path.split(|&byte| byte == b'/').try_fold(Inode::ROOT, |directory, name| self.lookup(directory, name))
    }

    /// The directory that holds `inode`; the root holds itself.
    pub fn parent(&self, inode: Inode) -> Option<Inode> {
        Some(Inode::at(self.node(inode)?.parent))
    }

    /// The children of a directory from the `skip`th on, sorted by name. `None` if it is not a directory.
    pub fn children(&self, directory: Inode, skip: usize) -> Option<impl Iterator<Item = (Inode, &str)>> {
        let Kind::Directory { first, count, .. } = self.node(directory)?.kind else { return None };
        let range = first + skip.min(count)..first + count;
        Some(range.map(|position| (Inode::at(position), self.text(self.nodes[position].name))))
    }

    /// Every inode, directories before what they hold.
    pub fn inodes(&self) -> impl Iterator<Item = Inode> + use<> {
        (0..self.nodes.len()).map(Inode::at)
    }

    /// The path of `inode` relative to the root.
    pub fn path(&self, inode: Inode) -> Option<String> {
        let mut names = Vec::new();
        let mut position = inode.position()?;
        while position != 0 {
            let node = self.nodes.get(position)?;
            names.push(self.text(node.name));
            position = node.parent;
        }
        names.reverse();
        Some(names.join("/"))
    }

    /// The object behind a file. `None` if `inode` is not a file.
    pub fn object(&self, inode: Inode) -> Option<Object> {
        let node = self.node(inode)?;
        let Kind::File { size_bytes, etag, md5 } = node.kind else { return None };
        Some(Object {
            name: format!("{}{}", self.object_prefix, self.path(inode)?),
            size_bytes,
            etag: etag.map(|etag| self.text(etag).to_owned()),
            modified: node.modified,
            md5,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn object(name: &str, size_bytes: u64) -> Object {
        let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(size_bytes));
        Object { name: name.to_owned(), size_bytes, etag: Some(format!("etag of {name}")), modified, md5: None }
    }

    fn paths(tree: &Tree) -> Vec<String> {
        let mut paths: Vec<String> = tree.inodes().filter_map(|inode| tree.path(inode)).collect();
        paths.sort();
        paths
    }

    #[test]
    fn hostile_names_are_hidden_and_what_remains_is_whole() {
        let names = [
            "dir/",
            "a//b",
            "dir/../x",
            "./x",
            "blue",
            "blue/x",
            "blue-x",
            "blue/",
            "zero",
            "full/",
            "/lead",
            "with space/+ & # ? %.bin",
            "ü/ñ",
            "zero",
            "line\nfeed",
            ".flashjob-copy/partial/1",
        ];
        let objects: Vec<Object> =
            names.iter().map(|name| object(name, if *name == "full/" { 3 } else { 0 })).collect();
        let (tree, hidden) = Tree::new(&objects);
        assert_eq!(
            paths(&tree),
            [
                "",
                "blue",
                "blue-x",
                "blue/x",
                "dir",
                "full",
                "with space",
                "with space/+ & # ? %.bin",
                "zero",
                "ü",
                "ü/ñ"
            ]
        );
        assert_eq!(hidden.count_of(Hidden::ShadowedByDirectory), 1);
        assert_eq!(hidden.count_of(Hidden::EmptyComponent), 2);
        assert_eq!(hidden.count_of(Hidden::DotComponent), 2);
        assert_eq!(hidden.count_of(Hidden::MarkerWithContent), 1);
        assert_eq!(hidden.count_of(Hidden::Duplicate), 1);
        assert_eq!((hidden.count_of(Hidden::Unaskable), hidden.count_of(Hidden::OfTheCopy)), (1, 1));
        assert_eq!(hidden.count(), 9);
        assert_eq!(tree.files(), 5);
    }

    #[test]
    fn nodes_are_counted_before_they_are_made() {
        for names in [vec![], vec!["a"], vec!["a/b/c", "a/b/d", "a/c/d", "b"], vec!["x-y/z", "x/y", "x/y-", "x/z/a"]] {
            let objects: Vec<Object> = names.iter().map(|name| object(name, 1)).collect();
            assert_eq!(Tree::nodes_needed(&objects) + 1, Tree::new(&objects).0.nodes(), "{names:?}");
        }
    }

    #[test]
    fn attributes_come_from_the_listing() {
        let (tree, _) = Tree::new(&[object("a/b/two", 2), object("a/nine", 9), object("a/c/", 0)]);
        let at = |path: &str| tree.attributes(tree.find(path.as_bytes()).unwrap()).unwrap();
        let seconds = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!((at("a/nine").size_bytes, at("a/nine").modified, at("a/nine").links), (9, seconds(9), 1));
        assert!(at("a").is_directory);
        assert_eq!((at("a").modified, at("a").links), (seconds(9), 4));
        assert_eq!((at("").links, at("a/b").modified), (3, seconds(2)));
        let file = tree.find(b"a/b/two").unwrap();
        assert_eq!(tree.object(file).unwrap(), object("a/b/two", 2));
        assert_eq!(tree.parent(tree.parent(file).unwrap()), tree.find(b"a"));
        assert_eq!(tree.parent(Inode::ROOT), Some(Inode::ROOT));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let (tree, _) = Tree::new(&[object("a/b", 1)]);
        for path in ["b", "a/bb", "a/b/c", "a/", "/a", "."] {
            assert_eq!(tree.find(path.as_bytes()), None, "{path}");
        }
        for number in [0, 4, u64::MAX] {
            assert_eq!(tree.attributes(Inode::from_number(number)), None);
        }
        let file = tree.find(b"a/b").unwrap();
        assert!(tree.children(file, 0).is_none() && tree.object(Inode::ROOT).is_none());
    }

    #[test]
    fn an_object_par_is_one_file_by_its_base_name() {
        let (tree, hidden) = Tree::of_one_object(&object("models/a//b/m.gguf", 5));
        assert_eq!((paths(&tree), hidden.count()), (vec![String::new(), "m.gguf".to_owned()], 0));
        let file = tree.find(b"m.gguf").unwrap();
        assert_eq!(tree.object(file).unwrap().name, "models/a//b/m.gguf");
        for name in ["dir/", "dir/.."] {
            let (tree, hidden) = Tree::of_one_object(&object(name, 5));
            assert_eq!((tree.files(), hidden.count()), (0, 1), "{name}");
        }
    }

    #[test]
    fn reading_a_directory_resumes_anywhere() {
        let (tree, _) = Tree::new(&[object("d/c", 0), object("d/a", 0), object("d/b", 0)]);
        let directory = tree.find(b"d").unwrap();
        for (skip, expected) in [(0, vec!["a", "b", "c"]), (2, vec!["c"]), (3, vec![]), (99, vec![])] {
            let names: Vec<&str> = tree.children(directory, skip).unwrap().map(|(_, name)| name).collect();
            assert_eq!(names, expected);
        }
    }
}
