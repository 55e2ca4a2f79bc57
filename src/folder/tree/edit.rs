//! Applying changes to a map by rewriting only the nodes they touch.
//!
//! The work goes level by level. Changed items of a level are put into new nodes, starting at an
//! old node boundary and going on until a new boundary falls on an old one again; the nodes that
//! were replaced are the changed items of the level above. The result is the tree that building
//! from scratch would give.

use std::collections::BTreeMap;

use bytes::Bytes;
use ccbt_xet::hash::NodeId;

use super::cursor::Cursor;
use super::node::{Child, Chunker, Finished, Item, Link};
use super::{DecodeError, Nodes, NodesError, Tree, Trees, check_entry};

impl<N: Nodes + ?Sized> Trees<'_, N> {
    /// Sets (`Some`) and removes (`None`) entries; the changes come in strictly ascending order of
    /// keys. Removing what is not there changes nothing. The nodes of the old tree stay.
    pub fn apply(
        &self,
        tree: &Tree,
        changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<Tree, NodesError<N::Error>> {
        let mut last: Option<Bytes> = None;
        let entries = changes.into_iter().map(|(key, value)| {
            check_entry(last.as_deref(), &key, value.as_deref().unwrap_or_default())?;
            last = Some(key.clone());
            let item = value.map(|value| Item::entry(key.clone(), &value));
            Ok(Change { key, item })
        });
        let mut changed = Rewrite::new(*self, tree, 0, entries)?.run()?;
        for level in 1..=tree.height {
            if changed.is_empty() {
                return Ok(*tree);
            }
            let items = parents_changes(changed).into_iter().map(Ok);
            changed = Rewrite::new(*self, tree, level, items)?.run()?;
        }
        match changed.pop() {
            Some(root) => self.new_root(tree.height, root.new),
            None => Ok(*tree),
        }
    }

    /// Makes a tree of what the old root became.
    fn new_root(&self, mut level: u8, mut nodes: Vec<Child>) -> Result<Tree, NodesError<N::Error>> {
        if nodes.is_empty() {
            return self.build_above(0, nodes);
        }
        while let [only] = &nodes[..]
            && level > 0
        {
            let first = Some(only.item.key.clone());
            let entries = Some(only.item.entries);
            let node = self.load(&Link {
                level,
                id: only.id,
                first,
                upper: None,
                entries,
            })?;
            if node.len() > 1 {
                break;
            }
            nodes = vec![Child {
                id: node.child_id(0),
                item: node.item(0),
            }];
            level -= 1;
        }
        self.build_above(level, nodes)
    }
}

/// An item of one level that is set or removed.
struct Change {
    key: Bytes,
    item: Option<Item>,
}

/// Neighbouring nodes that were replaced, and by what.
struct Region {
    old: Vec<(Bytes, NodeId)>,
    new: Vec<Child>,
}

impl Region {
    fn is_changed(&self) -> bool {
        let new = self.new.iter().map(|child| &child.id);
        !self.old.iter().map(|(_, id)| id).eq(new)
    }
}

/// What replaced nodes mean for the level above.
fn parents_changes(regions: Vec<Region>) -> Vec<Change> {
    let mut changes = Vec::new();
    for region in regions {
        let mut items: BTreeMap<Bytes, Option<Child>> = BTreeMap::new();
        items.extend(region.old.iter().map(|(key, _)| (key.clone(), None)));
        items.extend(
            region
                .new
                .into_iter()
                .map(|child| (child.item.key.clone(), Some(child))),
        );
        for (key, id) in region.old {
            if items
                .get(&key)
                .is_some_and(|new| new.as_ref().is_some_and(|new| new.id == id))
            {
                items.remove(&key);
            }
        }
        let parents = items.into_iter();
        changes.extend(parents.map(|(key, child)| Change {
            key,
            item: child.map(|c| c.item),
        }));
    }
    changes
}

/// The changes that are still to be made, with one looked at ahead.
struct Pending<I> {
    rest: I,
    next: Option<Change>,
}

impl<I: Iterator<Item = Result<Change, DecodeError>>> Pending<I> {
    fn new(mut rest: I) -> Result<Self, DecodeError> {
        let next = rest.next().transpose()?;
        Ok(Self { rest, next })
    }

    /// Takes the next change if its key is below `limit`, or there is no limit.
    fn take_below(&mut self, limit: Option<&[u8]>) -> Result<Option<Change>, DecodeError> {
        self.take_if(|key| limit.is_none_or(|limit| key < limit))
    }

    fn take_if(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Change>, DecodeError> {
        if !self.next.as_ref().is_some_and(|change| wanted(&change.key)) {
            return Ok(None);
        }
        let following = self.rest.next().transpose()?;
        Ok(std::mem::replace(&mut self.next, following))
    }
}

/// Rewrites one level.
struct Rewrite<'n, N: ?Sized, I> {
    trees: Trees<'n, N>,
    level: u8,
    cursor: Cursor<'n, N>,
    pending: Pending<I>,
    chunker: Chunker,
    regions: Vec<Region>,
}

impl<'n, N, I> Rewrite<'n, N, I>
where
    N: Nodes + ?Sized,
    I: Iterator<Item = Result<Change, DecodeError>>,
{
    fn new(
        trees: Trees<'n, N>,
        tree: &Tree,
        level: u8,
        changes: I,
    ) -> Result<Self, NodesError<N::Error>> {
        let pending = Pending::new(changes).map_err(NodesError::Input)?;
        let cursor = Cursor::new(trees, tree, level);
        let chunker = Chunker::new(level, trees.rules);
        Ok(Self {
            trees,
            level,
            cursor,
            pending,
            chunker,
            regions: Vec::new(),
        })
    }

    /// Makes all changes of the level; returns what was replaced, ascending.
    fn run(mut self) -> Result<Vec<Region>, NodesError<N::Error>> {
        while let Some(change) = &self.pending.next {
            let key = change.key.clone();
            self.seek(&key)?;
            self.regions.push(Region {
                old: Vec::new(),
                new: Vec::new(),
            });
            self.rewrite_region()?;
        }
        self.regions.retain(Region::is_changed);
        Ok(self.regions)
    }

    /// Goes to the node where rewriting for a change at `key` has to start. That is the node it
    /// belongs to, or the one before if that ends only because this key did not fit in.
    fn seek(&mut self, key: &[u8]) -> Result<(), NodesError<N::Error>> {
        self.cursor.seek(key)?;
        let is_first = |(_, link): (_, &Link)| link.first.as_ref().is_some_and(|f| f == key);
        if !self.cursor.current().is_some_and(is_first) || !self.cursor.previous()? {
            return Ok(());
        }
        let done = self.regions.last().and_then(|region| region.old.last());
        let settled = self.cursor.current().is_some_and(|(node, link)| {
            let rewritten = done.is_some_and(|(first, _)| link.first.as_ref() == Some(first));
            rewritten || node.ends_by_key(&self.trees.rules)
        });
        if settled {
            self.cursor.next()?;
        }
        Ok(())
    }

    /// Rewrites nodes from the cursor on until a new boundary falls on an old one.
    fn rewrite_region(&mut self) -> Result<(), NodesError<N::Error>> {
        loop {
            self.rewrite_node()?;
            if self.chunker.at_boundary() || !self.cursor.next()? {
                break;
            }
            if self.ends_before_next() {
                break;
            }
        }
        match self.chunker.finish() {
            Some(node) => self.emit(node),
            None => Ok(()),
        }
    }

    /// Whether the node being filled ends before the first item of the cursor's node, and that item
    /// stays as it is.
    fn ends_before_next(&self) -> bool {
        let Some((node, _)) = self.cursor.current() else {
            return true;
        };
        let kept = self
            .pending
            .next
            .as_ref()
            .is_none_or(|change| change.key > node.key(0));
        kept && self.chunker.ends_before(&node.item(0))
    }

    /// Feeds the items of the cursor's node, with the changes made, to the chunker.
    fn rewrite_node(&mut self) -> Result<(), NodesError<N::Error>> {
        let Some((node, link)) = self.cursor.current() else {
            return Ok(());
        };
        let (node, link) = (node.clone(), link.clone());
        if let Some(region) = self.regions.last_mut() {
            let first = if node.is_empty() {
                Bytes::new()
            } else {
                node.key_bytes(0)
            };
            region.old.push((first, link.id));
        }
        for i in 0..node.len() {
            let key = node.key(i);
            self.insert_below(Some(key))?;
            match self
                .pending
                .take_if(|changed| changed == key)
                .map_err(NodesError::Input)?
            {
                Some(change) => self.push(change.item)?,
                None => self.push(Some(node.item(i)))?,
            }
        }
        self.insert_below(link.upper.as_deref())
    }

    fn insert_below(&mut self, limit: Option<&[u8]>) -> Result<(), NodesError<N::Error>> {
        while let Some(change) = self.pending.take_below(limit).map_err(NodesError::Input)? {
            self.push(change.item)?;
        }
        Ok(())
    }

    fn push(&mut self, item: Option<Item>) -> Result<(), NodesError<N::Error>> {
        match item.and_then(|item| self.chunker.push(&item)) {
            Some(node) => self.emit(node),
            None => Ok(()),
        }
    }

    /// Stores a new node, unless it is an old one again: then that is one of the two nodes that
    /// were read last, since a node is complete at the latest when the next one begins.
    fn emit(&mut self, node: Finished) -> Result<(), NodesError<N::Error>> {
        let Some(region) = self.regions.last_mut() else {
            return Ok(());
        };
        let is_old = region
            .old
            .iter()
            .rev()
            .take(2)
            .any(|(_, id)| *id == node.child.id);
        let child = if is_old {
            node.child
        } else {
            self.trees.keep(self.level, node)?
        };
        region.new.push(child);
        Ok(())
    }
}
