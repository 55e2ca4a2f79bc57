//! Comparing two maps, and finding out which nodes of a map are not here.
//!
//! Both walk two trees side by side, level by level from the top, and drop what has equal names:
//! a node contains its keys, so equal nodes hold the same entries at the same places.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::node::{Link, Node};
use super::{NodeRef, Nodes, NodesError, Tree, Trees, link_ref};

/// Most missing nodes that a comparison reports at once: one GET message.
const MISSING_AT_ONCE: usize = 256;

impl<'n, N: Nodes + ?Sized> Trees<'n, N> {
    /// The entries in which two maps differ, ascending. If nodes are missing, the error names as
    /// many as could be found in one go; [`missing`](Self::missing) fetches without starting over.
    pub fn diff(&self, a: &Tree, b: &Tree) -> Result<Diff<'n, N>, NodesError<N::Error>> {
        let mut sides = Sides::new(*self, a, b);
        while sides.level > 0 {
            let mut missing = Vec::new();
            sides.descend(&mut missing)?;
            if !missing.is_empty() {
                missing.truncate(MISSING_AT_ONCE);
                return Err(NodesError::Missing(missing));
            }
        }
        Ok(Diff {
            a: Leaves::new(*self, sides.a),
            b: Leaves::new(*self, sides.b),
            ended: false,
        })
    }

    /// At most `limit` nodes of `tree` that are not here and whose parents are: what to fetch next.
    /// Empty when the tree is whole. What `known`, a tree that is whole, shares with it is not
    /// looked at.
    pub fn missing(
        &self,
        tree: &Tree,
        known: Option<&Tree>,
        limit: usize,
    ) -> Result<Vec<NodeRef>, NodesError<N::Error>> {
        let mut missing = Vec::new();
        let mut sides = Sides::new(*self, known.unwrap_or(tree), tree);
        if known.is_none() {
            sides.a.clear();
            sides.b = vec![tree.link()];
            sides.level = tree.height;
        }
        while sides.level > 0 && missing.len() < limit {
            sides.descend(&mut missing)?;
        }
        for link in &sides.b {
            if missing.len() >= limit {
                break;
            }
            let leaf = link_ref(link);
            if !self
                .nodes
                .has(leaf.kind, &leaf.id)
                .map_err(NodesError::Store)?
            {
                missing.push(leaf);
            }
        }
        missing.truncate(limit);
        Ok(missing)
    }
}

/// The nodes of one level at which two trees differ, in order.
struct Sides<'n, N: ?Sized> {
    trees: Trees<'n, N>,
    level: u8,
    a: Vec<Link>,
    b: Vec<Link>,
}

impl<'n, N: Nodes + ?Sized> Sides<'n, N> {
    fn new(trees: Trees<'n, N>, a: &Tree, b: &Tree) -> Self {
        let level = a.height.max(b.height);
        let mut sides = Self {
            trees,
            level,
            a: vec![a.link()],
            b: vec![b.link()],
        };
        sides.drop_equal();
        sides
    }

    /// Replaces the nodes of the level by their children and goes one level down. Nodes that are
    /// not here are added to `missing` and left out.
    fn descend(&mut self, missing: &mut Vec<NodeRef>) -> Result<(), NodesError<N::Error>> {
        self.a = self.children(&self.a, missing)?;
        self.b = self.children(&self.b, missing)?;
        self.level -= 1;
        self.drop_equal();
        Ok(())
    }

    fn children(
        &self,
        links: &[Link],
        missing: &mut Vec<NodeRef>,
    ) -> Result<Vec<Link>, NodesError<N::Error>> {
        let mut children = Vec::new();
        for link in links {
            if link.level < self.level {
                children.push(link.clone());
                continue;
            }
            match self.trees.try_load(link)? {
                Some(node) => {
                    let upper = link.upper.as_ref();
                    children.extend((0..node.len()).map(|i| node.link(i, upper)));
                }
                None => missing.push(link_ref(link)),
            }
        }
        Ok(children)
    }

    /// Removes nodes that are on both sides. Both lists ascend by first key, and a root begins
    /// before everything.
    fn drop_equal(&mut self) {
        let (a, b) = (std::mem::take(&mut self.a), std::mem::take(&mut self.b));
        let mut theirs = VecDeque::from(b);
        for mine in a {
            while let Some(link) = theirs.pop_front_if(|link| link.first < mine.first) {
                self.b.push(link);
            }
            let same = |link: &mut Link| link.level == mine.level && link.id == mine.id;
            if theirs.pop_front_if(same).is_none() {
                self.a.push(mine);
            }
        }
        self.b.extend(theirs);
    }
}

/// One entry in which two maps differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub key: Bytes,
    /// Value in the first map.
    pub a: Option<Bytes>,
    /// Value in the second map.
    pub b: Option<Bytes>,
}

/// Iterator over the entries in which two maps differ, see [`Trees::diff`]. After an error it ends.
pub struct Diff<'n, N: ?Sized> {
    a: Leaves<'n, N>,
    b: Leaves<'n, N>,
    ended: bool,
}

impl<N: Nodes + ?Sized> Diff<'_, N> {
    fn advance(&mut self) -> Result<Option<Difference>, NodesError<N::Error>> {
        loop {
            let (mine, theirs) = (self.a.peek()?, self.b.peek()?);
            let key = match (&mine, &theirs) {
                (None, None) => return Ok(None),
                (Some((key, _)), None) | (None, Some((key, _))) => key.clone(),
                (Some((mine, _)), Some((theirs, _))) => mine.min(theirs).clone(),
            };
            let a = mine.filter(|(at, _)| *at == key).map(|(_, value)| value);
            let b = theirs.filter(|(at, _)| *at == key).map(|(_, value)| value);
            self.a.at += usize::from(a.is_some());
            self.b.at += usize::from(b.is_some());
            if a != b {
                return Ok(Some(Difference { key, a, b }));
            }
        }
    }
}

impl<N: Nodes + ?Sized> Iterator for Diff<'_, N> {
    type Item = Result<Difference, NodesError<N::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// The entries of a list of leaves, loaded one by one.
struct Leaves<'n, N: ?Sized> {
    trees: Trees<'n, N>,
    rest: VecDeque<Link>,
    leaf: Option<Arc<Node>>,
    at: usize,
}

impl<'n, N: Nodes + ?Sized> Leaves<'n, N> {
    fn new(trees: Trees<'n, N>, links: Vec<Link>) -> Self {
        Self {
            trees,
            rest: links.into(),
            leaf: None,
            at: 0,
        }
    }

    /// The entry at the position, which moves on to the next leaf when one is used up.
    fn peek(&mut self) -> Result<Option<(Bytes, Bytes)>, NodesError<N::Error>> {
        loop {
            if let Some(leaf) = &self.leaf
                && self.at < leaf.len()
            {
                return Ok(Some((leaf.key_bytes(self.at), leaf.value(self.at))));
            }
            let Some(link) = self.rest.front() else {
                return Ok(None);
            };
            let Some(leaf) = self.trees.try_load(link)? else {
                return Err(self.missing());
            };
            self.leaf = Some(leaf);
            self.at = 0;
            self.rest.pop_front();
        }
    }

    /// The next leaf is not here: names it and others further on.
    fn missing(&self) -> NodesError<N::Error> {
        let mut missing = Vec::new();
        for link in &self.rest {
            let leaf = link_ref(link);
            match self.trees.nodes.has(leaf.kind, &leaf.id) {
                Ok(true) => {}
                Ok(false) => missing.push(leaf),
                Err(error) => return NodesError::Store(error),
            }
            if missing.len() == MISSING_AT_ONCE {
                break;
            }
        }
        NodesError::Missing(missing)
    }
}
