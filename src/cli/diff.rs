//! Two texts as a unified diff, for people: the shortest edit by lines (Myers 1986), given up where it would be long.

/// Lines that differ up to which the shortest edit is looked for; it takes memory with the square of them.
const EDITS_MAX: usize = 1000;

/// Equal lines around a change.
const CONTEXT: usize = 3;

/// One line of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Same,
    Removed,
    Added,
}

/// The diff of two texts, without the heads with their names; empty if they are equal.
pub(super) fn unified(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (
        old.split_inclusive('\n').collect(),
        new.split_inclusive('\n').collect(),
    );
    let steps = steps(&old, &new);
    let mut out = String::new();
    for hunk in hunks(&steps) {
        write_hunk(&mut out, &hunk, &steps, (&old, &new));
    }
    out
}

/// The steps from one text to the other, in order.
fn steps(old: &[&str], new: &[&str]) -> Vec<Step> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev());
    let tail = tail.take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    let mut steps = vec![Step::Same; head];
    match shortest(old, new) {
        Some(mut middle) => steps.append(&mut middle),
        None => {
            steps.resize(steps.len() + old.len(), Step::Removed);
            steps.resize(steps.len() + new.len(), Step::Added);
        }
    }
    steps.resize(steps.len() + tail, Step::Same);
    steps
}

/// The shortest edit; none if it takes more than [`EDITS_MAX`] lines.
fn shortest(old: &[&str], new: &[&str]) -> Option<Vec<Step>> {
    let max = (old.len() + new.len()).min(EDITS_MAX);
    // How far on each diagonal `k = x - y`, from -max - 1 to max + 1, the furthest path with so many edits gets.
    let at = |k: isize| (k + max as isize + 1) as usize;
    let mut reach = vec![0_usize; 2 * max + 3];
    let mut trace = Vec::new();
    for edits in 0..=max as isize {
        trace.push(reach.clone());
        for k in (-edits..=edits).step_by(2) {
            let is_down = k == -edits || (k != edits && reach[at(k - 1)] < reach[at(k + 1)]);
            let mut x = match is_down {
                true => reach[at(k + 1)],
                false => reach[at(k - 1)] + 1,
            };
            let Some(mut y) = x.checked_add_signed(-k) else {
                continue;
            };
            while x < old.len() && y < new.len() && old[x] == new[y] {
                (x, y) = (x + 1, y + 1);
            }
            reach[at(k)] = x;
            if x >= old.len() && y >= new.len() {
                return Some(walk_back(&trace, (old.len(), new.len()), &at));
            }
        }
    }
    None
}

/// Reads the way to the end from how far each number of edits got.
fn walk_back(trace: &[Vec<usize>], end: (usize, usize), at: &dyn Fn(isize) -> usize) -> Vec<Step> {
    let (mut x, mut y) = end;
    let mut steps = Vec::new();
    for (edits, reach) in trace.iter().enumerate().rev() {
        let (edits, k) = (edits as isize, x as isize - y as isize);
        let is_down = k == -edits || (k != edits && reach[at(k - 1)] < reach[at(k + 1)]);
        let before = if is_down { k + 1 } else { k - 1 };
        let from_x = reach[at(before)];
        let from_y = from_x.saturating_add_signed(-before);
        let is_first = edits == 0;
        let (to_x, to_y) = if is_first { (0, 0) } else { (from_x, from_y) };
        while x > to_x && y > to_y {
            steps.push(Step::Same);
            (x, y) = (x - 1, y - 1);
        }
        if !is_first {
            steps.push(if is_down { Step::Added } else { Step::Removed });
            (x, y) = (from_x, from_y);
        }
    }
    steps.reverse();
    steps
}

/// Ranges of steps with the changes that lie near each other, and their context.
fn hunks(steps: &[Step]) -> Vec<std::ops::Range<usize>> {
    let mut hunks: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, _) in steps.iter().enumerate().filter(|(_, s)| **s != Step::Same) {
        let range = index.saturating_sub(CONTEXT)..(index + 1 + CONTEXT).min(steps.len());
        match hunks.last_mut() {
            Some(last) if range.start <= last.end => last.end = range.end,
            _ => hunks.push(range),
        }
    }
    hunks
}

fn write_hunk(
    out: &mut String,
    hunk: &std::ops::Range<usize>,
    steps: &[Step],
    (old, new): (&[&str], &[&str]),
) {
    let count = |steps: &[Step], but: Step| steps.iter().filter(|step| **step != but).count();
    let (before, within) = (&steps[..hunk.start], &steps[hunk.clone()]);
    let (mut x, mut y) = (count(before, Step::Added), count(before, Step::Removed));
    let place = |at: usize, lines: usize| match lines {
        0 => format!("{at},0"),
        1 => format!("{}", at + 1),
        lines => format!("{},{lines}", at + 1),
    };
    out.push_str(&format!(
        "@@ -{} +{} @@\n",
        place(x, count(within, Step::Added)),
        place(y, count(within, Step::Removed))
    ));
    for step in within {
        let (mark, line) = match step {
            Step::Same => (' ', old.get(x)),
            Step::Removed => ('-', old.get(x)),
            Step::Added => ('+', new.get(y)),
        };
        x += usize::from(*step != Step::Added);
        y += usize::from(*step != Step::Removed);
        push_line(out, mark, line.copied().unwrap_or_default());
    }
}

/// One line. It comes from a file of somebody else: nothing in it moves the cursor.
fn push_line(out: &mut String, mark: char, line: &str) {
    out.push(mark);
    let text = line.strip_suffix('\n');
    let harmless = text.unwrap_or(line).chars().map(|c| match c {
        '\t' => c,
        c if c.is_control() => '\u{fffd}',
        c => c,
    });
    out.extend(harmless);
    out.push('\n');
    if text.is_none() {
        out.push_str("\\ No newline at end of file\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `diff -u` prints for the same texts, without the heads.
    #[test]
    fn a_diff_looks_like_that_of_diffutils() {
        let old = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n";
        let new = "one\ntwo\n3\nfour\nfive\nsix\nseven\neight\nnine\nten";
        let expected = "@@ -1,9 +1,10 @@\n one\n two\n-three\n+3\n four\n five\n six\n seven\n eight\n nine\n+ten\n\\ No newline at end of file\n";
        assert_eq!(unified(old, new), expected);
        assert_eq!(unified("", "a\n"), "@@ -0,0 +1 @@\n+a\n");
        assert_eq!(unified("a\n", ""), "@@ -1 +0,0 @@\n-a\n");
        assert_eq!(unified("same\n", "same\n"), "");
        assert_eq!(
            unified("a\u{1b}[2J\n", ""),
            "@@ -1 +0,0 @@\n-a\u{fffd}[2J\n"
        );
    }

    #[test]
    fn changes_far_apart_are_hunks_of_their_own() {
        let lines = |changed: &[usize]| -> String {
            let line = |n| format!("{}{n}\n", if changed.contains(&n) { "x" } else { "" });
            (0..40).map(line).collect()
        };
        let diff = unified(&lines(&[]), &lines(&[5, 30]));
        assert_eq!(diff.matches("@@ -").count(), 2, "{diff}");
        assert!(diff.contains("@@ -28,7 +28,7 @@"), "{diff}");
    }

    #[test]
    fn texts_that_have_nothing_in_common_are_replaced_as_a_whole() {
        let old: String = (0..3000).map(|n| format!("a{n}\n")).collect();
        let new: String = (0..3000).map(|n| format!("b{n}\n")).collect();
        let diff = unified(&old, &new);
        assert_eq!(diff.lines().count(), 6001);
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_one_text_to_the_other_and_are_no_more_than_needed(
            old in prop::collection::vec(0u8..4, 0..30),
            new in prop::collection::vec(0u8..4, 0..30),
        ) {
            let text = |lines: &[u8]| -> Vec<String> { lines.iter().map(|n| format!("{n}\n")).collect() };
            let (old, new) = (text(&old), text(&new));
            let old: Vec<&str> = old.iter().map(String::as_str).collect();
            let new: Vec<&str> = new.iter().map(String::as_str).collect();
            let (mut x, mut y, mut edits) = (0, 0, 0);
            for step in steps(&old, &new) {
                match step {
                    Step::Same => {
                        prop_assert_eq!(old[x], new[y]);
                        (x, y) = (x + 1, y + 1);
                    }
                    Step::Removed => (x, edits) = (x + 1, edits + 1),
                    Step::Added => (y, edits) = (y + 1, edits + 1),
                }
            }
            prop_assert_eq!((x, y), (old.len(), new.len()));
            prop_assert_eq!(edits, old.len() + new.len() - 2 * longest_common(&old, &new));
        }
    }

    fn longest_common(old: &[&str], new: &[&str]) -> usize {
        let mut row = vec![0; new.len() + 1];
        for a in old {
            let mut corner = 0;
            for (j, b) in new.iter().enumerate() {
                let above = row[j + 1];
                row[j + 1] = if a == b {
                    corner + 1
                } else {
                    above.max(row[j])
                };
                corner = above;
            }
        }
        row[new.len()]
    }
}
