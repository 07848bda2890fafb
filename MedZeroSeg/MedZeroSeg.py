"""MedZeroSeg in 3D Slicer: type the names of structures, get them as editable segments.
The module and its thin panel; what it does is in MedZeroSegSlicer/logic.py, which scripts use without the panel."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Installed, MedZeroSegLib lies beside this file; in a working copy it is one level up.
if importlib.util.find_spec("MedZeroSegLib") is None:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ctk
import qt
import slicer
import vtk
from MedZeroSegSlicer.choices import Device, Modality, Models
from MedZeroSegSlicer.correction_panel import CorrectionPanel
from MedZeroSegSlicer.install import consent_text, fetch_text
from MedZeroSegSlicer.logic import MedZeroSegLogic
from MedZeroSegSlicer.names_review import Review, insert_names, name_at, name_lists, replace_name, review_names
from MedZeroSegSlicer.panel_state import Facts, panel_state, run_reason, volume_line
from MedZeroSegSlicer.parameters import MedZeroSegParameterNode
from MedZeroSegSlicer.preferences import preference, recent_lists, remember_list, set_preference
from MedZeroSegSlicer.region_of_interest import region_of
from MedZeroSegSlicer.sample_data import register_sample_data
from MedZeroSegSlicer.scene_choice import belongs_to, result_of
from MedZeroSegSlicer.segmentation_run import Settings
from MedZeroSegSlicer.self_test import MedZeroSegTest
from MedZeroSegSlicer.volumes import VolumeState, load_ahead
from MedZeroSegSlicer.work_list_panel import WorkListPanel
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.region import Region

__all__ = [
    "Device",
    "MedZeroSeg",
    "MedZeroSegLogic",
    "MedZeroSegParameterNode",
    "MedZeroSegTest",
    "MedZeroSegWidget",
    "Modality",
    "Models",
]

REVIEW_HEIGHT_MAX, REVIEW_MARGIN = 152, 8  # pixels; a longer review scrolls
KEYS_OF_TOOLS = {"1": "include", "2": "exclude", "3": "scribble-in", "4": "scribble-out", "B": "box"}


class MedZeroSeg(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MedZeroSeg"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Markups", "Segmentations", "Sequences", "SubjectHierarchy", "Terminologies"]
        parent.contributors = ["MedZeroSeg contributors"]
        parent.helpText = _(
            "Type the names of structures; each that is found becomes an editable segment with name, color and code. "
            "CT, MR and X-ray images, on this computer. For research use: check every segment."
        )
        parent.acknowledgementText = _(
            "After the method of Zhang, Huang and Li, MedZeroSeg, PLOS ONE 21(3):e0344978, 2026. Models: LiteMedSAM "
            "and all-MiniLM-L6-v2 (Apache-2.0)."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


class TabKey(qt.QObject):
    """Takes the Tab key from a field while it completes a name there; else Tab goes to the next control, as always."""

    pressed: Callable[[], bool]

    def eventFilter(self, _field: Any, event: Any) -> bool:
        """Whether the event goes no further."""
        return event.type() == qt.QEvent.KeyPress and event.key() == qt.Qt.Key_Tab and self.pressed()


class MedZeroSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: `refresh` copies onto the controls what `panel_state` says, and nothing else changes them."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: MedZeroSegLogic | None = None
        self.parameters: MedZeroSegParameterNode | None = None
        self._guiTag: Any = None
        self._volume: Any = None  # the one that is observed
        self._region: Any = None  # the one that is observed
        self._models = Models.LITE  # those that were examined
        self._confirmed: tuple[str, ...] = ()  # unknown names that the user wants to try
        self._used = ""  # names of the run, which are kept when it is over: the disk may take its time
        self._review = Review()  # as shown
        self._logged: Any = None  # how many lines, and the last one
        self._purposes: dict[str, str] = {}  # tooltips as the .ui file has them
        self._shortcuts: dict[str, Any] = {}  # by their keys, while the user is in the module

    def setup(self) -> None:
        """Load the panel and connect it."""
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/MedZeroSeg.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self._purposes = {name: widget.toolTip for name, widget in vars(self.ui).items() if hasattr(widget, "toolTip")}
        self.logic = MedZeroSegLogic()
        self.logic.onChanged = self.refresh
        self.ui.weightsFolderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.ui.weightsFolderEdit.currentPath = preference("weightsFolder")
        self._connect()
        self.correctionPanel = CorrectionPanel(self.ui, self.logic, lambda: self.parameters, self.settings)
        self.workListPanel = WorkListPanel(self.ui, lambda: self.parameters, lambda: self.logic.run.state.under_way)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.chooseVolume)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneImported)
        self.useParameters(self.logic.getParameterNode())

    def _connect(self) -> None:
        ui = self.ui
        for button, slot in (
            (ui.runButton, self.onRun), (ui.cancelButton, self.logic.cancel), (ui.setupButton, self.onSetup),
            (ui.fetchButton, self.onFetch), (ui.folderButton, self.onChooseFolder),
            (ui.undoButton, self.logic.undo), (ui.editButton, self.onEdit),
            (ui.checkButton, self.onCheck), (ui.freeButton, self.logic.free), (ui.reportButton, self.onReport),
        ):  # fmt: skip
            button.connect("clicked(bool)", lambda _checked, slot=slot: slot())
        ui.promptsEdit.connect("textChanged()", self.onPrompts)
        ui.advancedSection.connect("contentsCollapsed(bool)", lambda _folded: self._showLog())
        ui.reviewList.connect("itemClicked(QListWidgetItem*)", self.onReviewClicked)
        ui.tryUnknownBox.connect("toggled(bool)", self.onTryUnknown)
        ui.licenceBox.connect("toggled(bool)", self.onLicence)
        ui.weightsFolderEdit.connect("currentPathChanged(QString)", self.onWeightsFolder)
        self._listsMenu = qt.QMenu(ui.listsButton)
        self._listsMenu.connect("aboutToShow()", self.fillListsMenu)
        ui.listsButton.setMenu(self._listsMenu)
        self._tabKey = TabKey()
        self._tabKey.pressed = self.onTab
        ui.promptsEdit.installEventFilter(self._tabKey)

    # Life of the module

    def enter(self) -> None:
        """The user comes to the module."""
        load_ahead()
        if self.parameters is None:
            self.useParameters(self.logic.getParameterNode())
        self.examine()
        self.chooseVolume()
        parent = slicer.util.mainWindow() or self.parent
        tools = {keys: lambda tool=tool: self.correctionPanel.use(tool) for keys, tool in KEYS_OF_TOOLS.items()}
        for keys, slot in (
            ("N", self.ui.doubtButton.click), ("Shift+A", self.ui.acceptButton.click), ("Ctrl+Return", self.onRun),
            ("Ctrl+Enter", self.onRun), ("Esc", self.onEscape), ("Ctrl+Z", self.onUndoKey), *tools.items(),
        ):  # fmt: skip
            shortcut = qt.QShortcut(qt.QKeySequence(keys), parent)
            shortcut.connect("activated()", slot)
            self._shortcuts[keys] = shortcut
        self.refresh()

    def chooseVolume(self, *_event: Any) -> None:
        """Begin with an image that is there, or with the first one that comes; a scene brings its own choice."""
        asked = self.parent.isEntered and not slicer.mrmlScene.IsImporting()
        if asked and self.parameters is not None and self.parameters.inputVolume is None:
            self.parameters.inputVolume = self.logic.likelyVolume()

    def exit(self) -> None:
        """The user leaves the module; a run goes on."""
        for shortcut in self._shortcuts.values():
            shortcut.enabled = False
            shortcut.setParent(None)
        self._shortcuts = {}
        self.correctionPanel.stop()
        self.shareUndo()

    def cleanup(self) -> None:
        """Slicer unloads the module."""
        self.exit()
        self.correctionPanel.close()
        self.useParameters(None)
        self.removeObservers()
        self.logic.close()

    def onSceneStartClose(self, *_event: Any) -> None:
        """The user closes the scene: nothing may write into it any more."""
        self.correctionPanel.close()
        self.logic.run.abandon()
        self.useParameters(None)

    def onSceneEndClose(self, *_event: Any) -> None:
        """The scene is empty now."""
        if self.parent.isEntered:
            self.useParameters(self.logic.getParameterNode())

    def onSceneImported(self, *_event: Any) -> None:
        """A loaded scene changes the parameter node without telling, so that it is looked at anew."""
        if self.parameters is not None:
            self.useParameters(self.logic.getParameterNode())
            self.chooseVolume()

    def useParameters(self, parameters: MedZeroSegParameterNode | None) -> None:
        """Show and change this parameter node from now on; None lets go of the present one."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._guiTag)
            self.removeObserver(self.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self.parameters = parameters
        self._observeVolume(parameters.inputVolume if parameters else None)
        self._observeRegion(parameters.region if parameters else None)
        if parameters is not None:
            self._guiTag = parameters.connectGui(self.ui)
            self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
            self.refresh()

    def onParameters(self, *_event: Any) -> None:
        """A parameter has changed. Another image gets the result that was made for it, or a new one."""
        volume = self.parameters.inputVolume
        if volume is not self._volume:
            self._observeVolume(volume)
            if volume is None or not belongs_to(self.parameters.segmentation, volume):
                self.parameters.segmentation = result_of(volume) if volume else None
        self._observeRegion(self.parameters.region)
        if self.parameters.models is not self._models:
            self.examine()
        self.refresh()

    def examine(self) -> None:
        """Look whether the chosen models have all that they need."""
        self._models = self.parameters.models
        self.logic.examine(self._models)

    def _observeVolume(self, volume: Any) -> None:
        """A volume node is in the scene before it has voxels, and its transform may change at any time."""
        kind = slicer.vtkMRMLScalarVolumeNode
        for event in (vtk.vtkCommand.ModifiedEvent, kind.ImageDataModifiedEvent, kind.TransformModifiedEvent):
            if self._volume is not None:
                self.removeObserver(self._volume, event, self.refresh)
            if volume is not None:
                self.addObserver(volume, event, self.refresh)
        self._volume = volume

    def _observeRegion(self, region: Any) -> None:
        """The user may move it at any time."""
        for event in (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLTransformableNode.TransformModifiedEvent):
            if self._region is not None and self._region is not region:
                self.removeObserver(self._region, event, self.refresh)
            if region is not None and self._region is not region:
                self.addObserver(region, event, self.refresh)
        self._region = region

    # The one place that changes controls

    def refresh(self, *_event: Any) -> None:
        """Make every control look as the state says."""
        if self.parameters is None:
            return
        segmentation = self.parameters.segmentation
        if segmentation is not self.ui.segmentsTable.segmentationNode():
            self.ui.segmentsTable.setSegmentationNode(segmentation)
            self.ui.show3DButton.setSegmentationNode(segmentation)
        self._showPrompts()
        for name, control in panel_state(self.facts()).items():
            for key, value in vars(control).items():
                if value is not None:
                    setattr(getattr(self.ui, name), key, value)
            if control.toolTip is None and control.enabled:
                getattr(self.ui, name).toolTip = self._purposes[name]  # in place of the reason why it was off
        self._showLog()
        if self._used and not self.logic.run.state.under_way:
            remember_list(self._used)
            self._used = ""
        self.correctionPanel.refresh()
        self.workListPanel.refresh()
        for keys, shortcut in self._shortcuts.items():
            if keys == "Esc":
                shortcut.enabled = self.ui.cancelButton.enabled or self.correctionPanel.tool != ""
            elif keys == "Ctrl+Z":  # in the field of names it is the field's
                shortcut.enabled = self.ui.undoButton.enabled or self.ui.takeBackButton.enabled
            elif keys in KEYS_OF_TOOLS:  # these are others' keys while none of our tools is used
                shortcut.enabled = self.correctionPanel.tool != ""

    def _showLog(self) -> None:
        lines = self.logic.run.log
        if self.ui.advancedSection.collapsed or (len(lines), lines and lines[-1]) == self._logged:
            return
        self._logged = (len(lines), lines and lines[-1])
        self.ui.logView.setPlainText("\n".join(lines))
        self.ui.logView.moveCursor(qt.QTextCursor.End)

    def facts(self) -> Facts:
        """What is true now."""
        parameters, run = self.parameters, self.logic.run
        segmentation = parameters.segmentation
        region, region_problem = self.region()
        return Facts(
            setup=self.logic.setup,
            volume=self.volumeState(),
            review=self.review(),
            run=run.state,
            confirmed=self._confirmed,
            region=region,
            region_problem=region_problem,
            licence_asked=parameters.models is Models.RESEARCH,
            licence_accepted=preference("licenceAccepted") == "true",
            has_segments=segmentation is not None and segmentation.GetSegmentation().GetNumberOfSegments() > 0,
            engine_warm=run.warm,
            can_undo=run.can_undo,
        )

    def volumeState(self) -> VolumeState | None:
        """What the chosen image is; None without one."""
        volume = self.parameters.inputVolume
        return None if volume is None else self.logic.describe(volume, self.parameters.modality)

    def region(self) -> tuple[Region | None, str]:
        """Where structures are looked for, None for everywhere; or why that cannot be."""
        state, roi = self.volumeState(), self.parameters.region
        if roi is None or state is None or not state.usable:
            return None, ""
        try:
            return region_of(roi, self.parameters.inputVolume), ""
        except InputError as error:
            return None, str(error)

    def review(self) -> Review:
        """What the typed names were understood as."""
        state = self.volumeState()
        if state is None or not state.usable:
            return review_names(self.parameters.prompts)
        return review_names(self.parameters.prompts, state.modality, state.field_of_view)

    def _showPrompts(self) -> None:
        ui, review = self.ui, self.review()
        if ui.promptsEdit.toPlainText() != self.parameters.prompts:
            ui.promptsEdit.setPlainText(self.parameters.prompts)
        if review is self._review:
            return
        self._review = review
        ui.reviewList.clear()
        for row in review.rows:
            ui.reviewList.addItem(row.text)
            ui.reviewList.item(ui.reviewList.count - 1).setToolTip(row.tooltip)
        rows = [ui.reviewList.sizeHintForRow(number) for number in range(ui.reviewList.count)]
        height = sum(rows) + 2 * ui.reviewList.spacing * len(rows) + REVIEW_MARGIN
        ui.reviewList.setFixedHeight(min(height, REVIEW_HEIGHT_MAX))
        ui.reviewList.visible = bool(review.rows)

    # What the user does

    def onPrompts(self) -> None:
        """Kept by hand: Slicer's own connection of a text edit sets the cursor back to the start at every key."""
        text = self.ui.promptsEdit.toPlainText()
        if self.parameters is not None and text != self.parameters.prompts:
            self.parameters.prompts = text

    def setPrompts(self, text: str) -> None:
        """Put a text into the field, in one step that Ctrl+Z in it takes back."""
        cursor = self.ui.promptsEdit.textCursor()
        cursor.select(qt.QTextCursor.Document)
        cursor.insertText(text)

    def onTab(self) -> bool:
        """Take the first name offered for the one that the cursor is in; False where none is."""
        text = self.ui.promptsEdit.toPlainText()
        name = name_at(text, self.ui.promptsEdit.textCursor().position())
        for row in self._review.rows:
            if name and row.replacement and name.casefold() in row.typed.casefold():
                self.setPrompts(replace_name(text, row.typed, row.replacement))
                return True
        return False

    def onReviewClicked(self, item: Any) -> None:
        """Take the name that was clicked."""
        row = self._review.rows[self.ui.reviewList.row(item)]
        if row.replacement is not None:
            self.setPrompts(replace_name(self.ui.promptsEdit.toPlainText(), row.typed, row.replacement))

    def onTryUnknown(self, checked: bool) -> None:
        """The second, explicit confirmation; it holds for the names that stand there now."""
        if checked != self.facts().tries_unknown:
            self._confirmed = self._review.unknown if checked else ()
            self.refresh()

    def fillListsMenu(self) -> None:
        """Lists of names often needed together, then those used last."""
        self._listsMenu.clear()
        recent = [review_names(text).names for text in recent_lists()]
        for titles in (name_lists(), {", ".join(names): names for names in recent}):
            for title, names in titles.items():
                action = self._listsMenu.addAction(title)
                action.triggered.connect(lambda *_checked, names=names: self.onList(names))
            self._listsMenu.addSeparator()

    def onList(self, names: Sequence[str]) -> None:
        """Add a list of names."""
        self.setPrompts(insert_names(self.ui.promptsEdit.toPlainText(), names))

    def onRun(self) -> None:
        """Segment."""
        if self.logic.run.state.under_way or run_reason(self.facts()):
            return
        review, parameters = self._review, self.parameters
        left_out = () if self.facts().tries_unknown else review.unknown
        self._used = parameters.prompts
        self.logic.run.on_segmentation = self.onSegmentation
        self.logic.start(
            parameters.inputVolume,
            [name for name in review.names if name not in left_out],
            self.settings(),
            segmentation=parameters.segmentation,
            modality=parameters.modality.value or None,
            left_out=left_out,
            stay_out=parameters.stayOut,
            all_frames=parameters.allFrames and self.facts().frames > 1,
            region=parameters.region,
        )

    def onEscape(self) -> None:
        """Put the tool away, or else cancel."""
        if self.correctionPanel.tool:
            self.correctionPanel.stop()
        else:
            self.logic.cancel()

    def onUndoKey(self) -> None:
        """Take back what is on its way, or else the last change."""
        (self.ui.takeBackButton if self.logic.correction.busy else self.ui.undoButton).click()

    def onSegmentation(self, node: Any) -> None:
        """A run has made the segmentation that its results go into."""
        if self.parameters is not None:
            self.parameters.segmentation = node

    def settings(self) -> Settings:
        """How the engine is to run."""
        parameters = self.parameters
        folder = preference("weightsFolder")
        return Settings(parameters.models.value, parameters.device.value, folder, parameters.sensitivity)

    def onCheck(self) -> None:
        """Let the engine check itself."""
        self.logic.check(self.settings())

    def onReport(self) -> None:
        """Put the report into the clipboard."""
        report = self.logic.report(self.settings(), volume_line(self.volumeState()))
        qt.QApplication.clipboard().setText(report)

    def onLicence(self, accepted: bool) -> None:
        """The user accepts the licence of the research models, or takes that back."""
        set_preference("licenceAccepted", "true" if accepted else "false")
        self.refresh()

    def onWeightsFolder(self, folder: str) -> None:
        """The user has named another folder with model files."""
        set_preference("weightsFolder", folder)
        self.examine()
        self.refresh()

    def onChooseFolder(self) -> None:
        """Take the model files from a folder."""
        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Folder with the model files"))
        if folder:
            self.ui.weightsFolderEdit.currentPath = folder

    def onSetup(self) -> None:
        """Install what is missing, once the user has read what and agreed; then let the engine check itself."""
        if slicer.util.confirmOkCancelDisplay(consent_text(self.logic.setup), _("Set up MedZeroSeg")):
            self.logic.install(self.parameters.models)
            if self.logic.setup.ready:
                self.onCheck()

    def onFetch(self) -> None:
        """Download the model files, once the user has read what and agreed; the window stays alive."""
        if slicer.util.confirmOkCancelDisplay(fetch_text(self.logic.setup), _("Download model files")):
            self.logic.fetch(self.settings())

    def onEdit(self) -> None:
        """Hand the segments over to Slicer's own editor, with what can be undone."""
        chosen = list(self.ui.segmentsTable.selectedSegmentIDs())
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.SegmentEditorWidget.editor
        editor.setSegmentationNode(self.parameters.segmentation)
        editor.setSourceVolumeNode(self.parameters.inputVolume)
        self.shareUndo()
        if len(chosen) == 1:
            editor.setCurrentSegmentID(chosen[0])

    def shareUndo(self) -> None:
        """Let the Segment Editor undo what was done here, if it shows the same segments; the selection stays."""
        if self.parameters is None or self.parameters.segmentation is None:
            return
        chosen = list(self.ui.segmentsTable.selectedSegmentIDs())
        self.logic.run.share_undo()
        if chosen != list(self.ui.segmentsTable.selectedSegmentIDs()):
            self.ui.segmentsTable.setSelectedSegmentIDs(chosen)
