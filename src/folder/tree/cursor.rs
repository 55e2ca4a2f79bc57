//! Walking a map in the order of its keys.

use std::sync::Arc;

use bytes::Bytes;

use super::node::{Link, Node};
use super::{Nodes, NodesError, Tree, Trees};

/// A position among the nodes of one level.
pub(super) struct Cursor<'n, N: ?Sized> {
    trees: Trees<'n, N>,
    /// From the root to a node of the level.
    path: Vec<Step>,
    tree: Tree,
    level: u8,
}

/// A node on the way down.
struct Step {
    node: Arc<Node>,
    link: Link,
    /// The child that the next step is.
    at: usize,
}

impl<'n, N: Nodes + ?Sized> Cursor<'n, N> {
    /// A cursor over the nodes of `level`, which the tree has; nothing is loaded yet.
    pub(super) fn new(trees: Trees<'n, N>, tree: &Tree, level: u8) -> Self {
        Self {
            trees,
            path: Vec::new(),
            tree: *tree,
            level,
        }
    }

    /// Moves to the node under which `key` belongs: the last that begins at or below it, else the
    /// first of the level. Nodes that are on the way already are not loaded again.
    pub(super) fn seek(&mut self, key: &[u8]) -> Result<(), NodesError<N::Error>> {
        if self.path.is_empty() {
            self.descend(self.tree.link())?;
        }
        for depth in 0..self.path.len() {
            let step = &mut self.path[depth];
            if step.node.level == self.level {
                break;
            }
            let at = step.node.child_for(key);
            if at != step.at || depth + 1 == self.path.len() {
                self.path.truncate(depth + 1);
                return self.go_down(at, |node| node.child_for(key));
            }
        }
        Ok(())
    }

    /// Moves to the next node of the level. At the last one it stays and returns false.
    pub(super) fn next(&mut self) -> Result<bool, NodesError<N::Error>> {
        let above = self.path.len().saturating_sub(1);
        let movable = |step: &Step| step.at + 1 < step.node.len();
        let Some(depth) = self.path[..above].iter().rposition(movable) else {
            return Ok(false);
        };
        self.path.truncate(depth + 1);
        let at = self.path[depth].at + 1;
        self.go_down(at, |_| 0)?;
        Ok(true)
    }

    /// Moves to the previous node of the level. At the first one it stays and returns false.
    pub(super) fn previous(&mut self) -> Result<bool, NodesError<N::Error>> {
        let above = self.path.len().saturating_sub(1);
        let Some(depth) = self.path[..above].iter().rposition(|step| step.at > 0) else {
            return Ok(false);
        };
        self.path.truncate(depth + 1);
        let at = self.path[depth].at - 1;
        self.go_down(at, |node| node.len() - 1)?;
        Ok(true)
    }

    /// The node and the reference to it; none before the first [`seek`](Self::seek).
    pub(super) fn current(&self) -> Option<(&Arc<Node>, &Link)> {
        self.path.last().map(|step| (&step.node, &step.link))
    }

    /// Goes from the last step to its child `at`, and on by `choose` to the level.
    fn go_down(
        &mut self,
        mut at: usize,
        choose: impl Fn(&Node) -> usize,
    ) -> Result<(), NodesError<N::Error>> {
        while let Some(step) = self.path.last_mut() {
            if step.node.level == self.level {
                break;
            }
            step.at = at;
            let link = step.node.link(at, step.link.upper.as_ref());
            let loaded = self.descend(link);
            if let Err(error) = loaded {
                self.path.clear();
                return Err(error);
            }
            at = self.path.last().map_or(0, |step| choose(&step.node));
        }
        Ok(())
    }

    fn descend(&mut self, link: Link) -> Result<(), NodesError<N::Error>> {
        let node = self.trees.load(&link)?;
        self.path.push(Step { node, link, at: 0 });
        Ok(())
    }
}

/// Iterator over the entries of a map from some key on, see [`Trees::range`].
pub struct Range<'n, N: ?Sized> {
    cursor: Cursor<'n, N>,
    state: State,
}

enum State {
    /// Not begun; the first key wanted.
    From(Bytes),
    /// Index of the next entry in the cursor's leaf.
    At(usize),
    Ended,
}

impl<'n, N: Nodes + ?Sized> Range<'n, N> {
    pub(super) fn new(trees: Trees<'n, N>, tree: &Tree, from: &[u8]) -> Self {
        let cursor = Cursor::new(trees, tree, 0);
        Self {
            cursor,
            state: State::From(Bytes::copy_from_slice(from)),
        }
    }

    fn advance(&mut self) -> Result<Option<(Bytes, Bytes)>, NodesError<N::Error>> {
        let mut at = match &self.state {
            State::Ended => return Ok(None),
            State::At(at) => *at,
            State::From(key) => {
                self.cursor.seek(key)?;
                self.cursor
                    .current()
                    .map_or(0, |(leaf, _)| leaf.lower_bound(key))
            }
        };
        while let Some((leaf, _)) = self.cursor.current() {
            if at < leaf.len() {
                let entry = (leaf.key_bytes(at), leaf.value(at));
                self.state = State::At(at + 1);
                return Ok(Some(entry));
            }
            if !self.cursor.next()? {
                break;
            }
            at = 0;
        }
        self.state = State::Ended;
        Ok(None)
    }
}

impl<N: Nodes + ?Sized> Iterator for Range<'_, N> {
    type Item = Result<(Bytes, Bytes), NodesError<N::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.advance();
        if entry.is_err() {
            self.state = State::Ended;
        }
        entry.transpose()
    }
}
