-- Questions to the battery's findings that need several days: kept as views, so that every reader asks the same one.

-- Cells that stood off the others, by z or by its robust form, in half of the usable records of three days or more, and
-- by 10 mV on average (4.7 [P]). All days that are kept; for a window ask cell_outliers with the same condition.
CREATE VIEW persistent_outliers AS
SELECT vehicle_id, cell, count(*) AS days, min(day) AS first_day, max(day) AS last_day,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY deviation_mv) AS deviation_mv
FROM cell_outliers
WHERE usable_rows > 0 AND greatest(z_rows, robust_rows) >= 0.5 * usable_rows AND abs(deviation_mv) >= 10
GROUP BY vehicle_id, cell
HAVING count(*) >= 3;

-- Cells that lost 5 mV a day or more beyond the pack's median in three rests of six hours or more (4.12 [P]).
CREATE VIEW self_discharging_cells AS
SELECT vehicle_id, cell, count(*) AS rests, min(day) AS first_day, max(day) AS last_day,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY drop_mv_per_day - median_drop_mv_per_day) AS excess_mv_per_day
FROM cell_rests
WHERE drop_mv_per_day - median_drop_mv_per_day >= 5
GROUP BY vehicle_id, cell
HAVING count(*) >= 3;
