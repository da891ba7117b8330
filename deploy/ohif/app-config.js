// OHIF 3.13 in front of a PACS that speaks DICOMweb: copy it over dist/app-config.js. For research use only.
//
// To point an OHIF of your own at your PACS, the three roots are all there is to change. Give the address under which the
// browser reaches it, or, as here, a path that OHIF's own web server passes on: then no CORS is needed.
window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  maxNumberOfWebWorkers: 3,
  // OHIF is not cleared for diagnosis, and nor are our results: it says so in every window.
  investigationalUseDialog: { option: 'always' },
  // A segmentation that is opened is shown at once; without this OHIF asks first.
  disableConfirmationPrompts: true,
  defaultDataSourceName: 'pacs',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'pacs',
      configuration: {
        friendlyName: 'PACS',
        name: 'pacs',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        wadoUriRoot: '/dicom-web/wado',
        qidoSupportsIncludeField: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        dicomUploadEnabled: false,
        omitQuotationForMultipartRequest: true, // Orthanc takes no quotation marks in Accept
        bulkDataURI: { enabled: true },
      },
    },
  ],
};
